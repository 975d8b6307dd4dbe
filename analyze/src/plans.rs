//! What of DataFusion's plans is changed, and nothing of what they compute:
//! [`OneKey`] groups by fewer columns, [`MergeJoins`] joins what does not fit into
//! memory, and [`CompactSorts`] gives sorts what they can count.

mod compact;

use std::sync::Arc;

use arrow::compute::SortOptions;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{Column, DFSchema, JoinType};
use datafusion::error::Result;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Projection};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use datafusion::physical_expr::expressions;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, SortMergeJoinExec};

pub(crate) use compact::CompactSorts;

/// Leaves out of a `GROUP BY` the columns that are constants further down. A group
/// of one whole number is found three times as fast as one of three columns.
#[derive(Debug)]
pub(crate) struct OneKey;

impl OptimizerRule for OneKey {
    fn name(&self) -> &str {
        "one_key"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(
        &self,
        plan: LogicalPlan,
        _: &dyn OptimizerConfig,
    ) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Aggregate(aggregate) = plan else {
            return Ok(Transformed::no(plan));
        };
        let constants = aggregate.group_expr.iter().map(|expr| match expr {
            Expr::Column(column) => constant(&aggregate.input, column),
            _ => None,
        });
        let constants: Vec<Option<Expr>> = constants.collect();
        let left_out = constants.iter().flatten().count();
        // Of no key at all there would be one group even of no rows.
        if left_out == 0 || left_out == constants.len() {
            return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
        }
        let keys = aggregate.group_expr.iter().zip(&constants);
        let keys = keys.filter(|(_, constant)| constant.is_none());
        let keys = keys.map(|(key, _)| key.clone()).collect();
        let fewer = Aggregate::try_new(Arc::clone(&aggregate.input), keys, aggregate.aggr_expr)?;
        let rest = std::iter::repeat(None);
        let columns = aggregate
            .schema
            .iter()
            .zip(constants.into_iter().chain(rest));
        let columns = columns.map(|((relation, field), constant)| match constant {
            Some(constant) => constant.alias_qualified(relation.cloned(), field.name()),
            None => Expr::Column(Column::new(relation.cloned(), field.name())),
        });
        let columns = columns.collect();
        let projection = Projection::try_new(columns, Arc::new(LogicalPlan::Aggregate(fewer)))?;
        Ok(Transformed::yes(LogicalPlan::Projection(projection)))
    }
}

/// What `column` of `plan` is in every row, where the plan says so.
fn constant(plan: &LogicalPlan, column: &Column) -> Option<Expr> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let index = projection.schema.maybe_index_of_column(column)?;
            match projection.expr[index].clone().unalias() {
                literal @ Expr::Literal(..) => Some(literal),
                Expr::Column(inner) => constant(&projection.input, &inner),
                _ => None,
            }
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let index = alias.schema.maybe_index_of_column(column)?;
            constant(&alias.input, &column_at(alias.input.schema(), index))
        }
        LogicalPlan::Filter(filter) => constant(&filter.input, column),
        _ => None,
    }
}

fn column_at(schema: &DFSchema, index: usize) -> Column {
    Column::from(schema.qualified_field(index))
}

/// Joins request with request by merging both sides in order instead of holding
/// one of them: sorting goes to the disk, a table of hashes does not. It comes
/// first of all rules, before anything depends on how a join is done.
#[derive(Debug)]
pub(crate) struct MergeJoins;

impl PhysicalOptimizerRule for MergeJoins {
    fn name(&self) -> &str {
        "merge_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let merged = plan.transform_up(|node| match node.downcast_ref::<HashJoinExec>() {
            Some(join) if is_large(join) => Ok(Transformed::yes(merge(join)?)),
            _ => Ok(Transformed::no(node)),
        });
        merged.map(|plan| plan.data)
    }
}

/// Both sides may have a row for every request.
fn is_large(join: &HashJoinExec) -> bool {
    use JoinType::{Inner, Left, LeftAnti, LeftSemi, Right, RightAnti, RightSemi};
    let is_merged = match join.join_type() {
        Inner | Left | Right | LeftSemi | RightSemi | LeftAnti | RightAnti => !join.null_aware,
        _ => false,
    };
    let keys = join.on().iter().map(|(left, _)| left);
    let mut columns = keys.filter_map(|key| key.downcast_ref::<expressions::Column>());
    is_merged && !join.contains_projection() && columns.any(|c| c.name() == "request_id")
}

fn merge(join: &HashJoinExec) -> Result<Arc<dyn ExecutionPlan>> {
    let join = SortMergeJoinExec::try_new(
        Arc::clone(join.left()),
        Arc::clone(join.right()),
        join.on().to_vec(),
        join.filter().cloned(),
        *join.join_type(),
        vec![SortOptions::default(); join.on().len()],
        join.null_equality(),
    )?;
    Ok(Arc::new(join))
}
