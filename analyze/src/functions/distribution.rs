//! `distribution(values, percentiles[, rule[, weight]])`: exact statistics of a
//! sample, as one struct.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, ListArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Float64Type, Int64Type};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Signature, TypeSignature, Volatility,
};

use crate::distribution::{Distribution, Real, Rule, Spill, Summary, Whole};

/// Samples that hold more than `spill` allows go to the disk.
pub(super) fn function(spill: Arc<Spill>) -> AggregateUDF {
    let arities = (2..=4).map(TypeSignature::Any).collect();
    AggregateUDF::from(Function {
        signature: Signature::one_of(arities, Volatility::Immutable),
        spill,
    })
}

static NEIGHBOURS: LazyLock<Fields> = LazyLock::new(|| {
    let float = |name| Field::new(name, DataType::Float64, false);
    Fields::from(["p", "below", "above", "fraction"].map(float).to_vec())
});

fn item(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("item", data_type, true))
}

static SUMMARY: LazyLock<Fields> = LazyLock::new(|| {
    let float = |name| Field::new(name, DataType::Float64, true);
    Fields::from(vec![
        Field::new("n", DataType::Int64, true),
        float("mean"),
        float("std"),
        float("min"),
        float("max"),
        Field::new(
            "percentiles",
            DataType::List(item(DataType::Struct(NEIGHBOURS.clone()))),
            true,
        ),
    ])
});

#[derive(Debug)]
struct Function {
    signature: Signature,
    spill: Arc<Spill>,
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.signature == other.signature && Arc::ptr_eq(&self.spill, &other.spill)
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.signature.hash(state);
    }
}

/// Of the values of a column, or of its lists.
fn value_type(column: &DataType) -> &DataType {
    match column {
        DataType::List(item) => item.data_type(),
        other => other,
    }
}

impl AggregateUDFImpl for Function {
    fn name(&self) -> &'static str {
        "distribution"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let (values, percentiles) = (&arguments[0], &arguments[1]);
        if !matches!(value_type(values), DataType::Int64 | DataType::Float64) {
            return plan_err!(
                "distribution takes values of type BIGINT or DOUBLE, or lists of them, not {values}"
            );
        }
        if !matches!(percentiles, DataType::List(_)) {
            return plan_err!(
                "distribution takes a list of percentiles, as in distribution(x, [50.0, 99.0])"
            );
        }
        Ok(DataType::Struct(SUMMARY.clone()))
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let values = match value_type(args.expr_fields[0].data_type()) {
            DataType::Int64 => Distribution::Whole(Whole::default()),
            _ => Distribution::Real(Real::spilling(&self.spill)),
        };
        Ok(Box::new(Sample {
            values,
            percentiles: None,
            rule: Rule::default(),
        }))
    }

    fn state_fields(&self, _: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let field = |name, data_type| Arc::new(Field::new(name, data_type, true));
        Ok(vec![
            field("values", DataType::LargeBinary),
            field("percentiles", DataType::List(item(DataType::Float64))),
            field("rule", DataType::Utf8),
        ])
    }
}

#[derive(Debug)]
struct Sample {
    values: Distribution,
    /// Of the first row; they are meant to be the same in all.
    percentiles: Option<Vec<f64>>,
    rule: Rule,
}

impl Sample {
    fn set_percentiles(&mut self, lists: &ArrayRef) -> Result<()> {
        let lists = lists.as_list::<i32>();
        if self.percentiles.is_some() || lists.is_empty() || lists.is_null(0) {
            return Ok(());
        }
        let list = cast(&lists.value(0), &DataType::Float64)?;
        let list: Vec<f64> = list
            .as_primitive::<Float64Type>()
            .iter()
            .flatten()
            .collect();
        if let Some(p) = list.iter().find(|p| !(0.0..=100.0).contains(*p)) {
            return exec_err!("{p} is not a percentile from 0 to 100");
        }
        self.percentiles = Some(list);
        Ok(())
    }

    fn set_rule(&mut self, names: &ArrayRef) -> Result<()> {
        let names = cast(names, &DataType::Utf8)?;
        let Some(name) = names.as_string::<i32>().iter().flatten().next() else {
            return Ok(());
        };
        let Some(rule) = Rule::of(name) else {
            let known = Rule::ALL.map(|(name, _)| name).join(", ");
            return exec_err!("distribution has no rule {name:?}, only {known}");
        };
        self.rule = rule;
        Ok(())
    }

    /// Adds those of `values` that are there, by `weight` of their row.
    fn add(&mut self, values: &ArrayRef, weight: impl Fn(usize) -> u64) {
        match &mut self.values {
            Distribution::Whole(whole) => {
                let rows = values.as_primitive::<Int64Type>().iter().enumerate();
                rows.for_each(|(row, v)| v.into_iter().for_each(|v| whole.add(v, weight(row))));
            }
            Distribution::Real(real) => {
                let rows = values.as_primitive::<Float64Type>().iter().enumerate();
                rows.for_each(|(row, v)| v.into_iter().for_each(|v| real.add(v, weight(row))));
            }
        }
    }
}

/// The values of all lists that are not NULL, one after the other.
fn flat(lists: &ListArray) -> Vec<ArrayRef> {
    if lists.null_count() == 0 {
        let (first, last) = (lists.value_offsets()[0], lists.value_offsets()[lists.len()]);
        let length = (last - first) as usize;
        return vec![lists.values().slice(first as usize, length)];
    }
    lists.iter().flatten().collect()
}

impl Accumulator for Sample {
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        self.set_percentiles(&columns[1])?;
        if let Some(names) = columns.get(2) {
            self.set_rule(names)?;
        }
        let weights = columns
            .get(3)
            .map(|weights| cast(weights, &DataType::Int64));
        let weights = weights.transpose()?;
        let weights = weights.as_ref().map(|w| w.as_primitive::<Int64Type>());
        match (columns[0].as_list_opt::<i32>(), weights) {
            (Some(_), Some(_)) => return exec_err!("distribution weighs values, not lists"),
            (Some(lists), None) => flat(lists).iter().for_each(|v| self.add(v, |_| 1)),
            (None, None) => self.add(&columns[0], |_| 1),
            (None, Some(weights)) => {
                let weight = |row| {
                    if weights.is_null(row) {
                        0
                    } else {
                        weights.value(row)
                    }
                };
                self.add(&columns[0], |row| u64::try_from(weight(row)).unwrap_or(0));
            }
        }
        Ok(self.values.relieve()?)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let percentiles = self.percentiles.take().unwrap_or_default();
        let Some(summary) = self.values.summary(&percentiles, self.rule)? else {
            return ScalarValue::try_from(&DataType::Struct(SUMMARY.clone()));
        };
        Ok(ScalarValue::Struct(Arc::new(row(&percentiles, &summary)?)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.size_bytes()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let percentiles = self.percentiles.take();
        let percentiles = percentiles.map(|list| list.into_iter().map(Some));
        let lists = ListArray::from_iter_primitive::<Float64Type, _, _>([percentiles]);
        let mut names = Rule::ALL.into_iter();
        let name = names.find(|(_, rule)| *rule == self.rule);
        Ok(vec![
            ScalarValue::LargeBinary(Some(self.values.take_bytes()?)),
            ScalarValue::List(Arc::new(lists)),
            ScalarValue::from(name.map_or("linear", |(name, _)| name)),
        ])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for row in 0..states[0].len() {
            // A part without rows knows neither percentiles nor rule.
            let values = states[0].as_binary::<i64>().value(row);
            if values.is_empty() {
                continue;
            }
            self.set_percentiles(&states[1].slice(row, 1))?;
            self.set_rule(&states[2].slice(row, 1))?;
            if self.values.merge(values).is_none() {
                return exec_err!("a part of a distribution cannot be read");
            }
            self.values.relieve()?;
        }
        Ok(())
    }
}

fn row(percentiles: &[f64], summary: &Summary) -> Result<StructArray> {
    let floats = |values: Vec<f64>| -> ArrayRef { Arc::new(Float64Array::from(values)) };
    let neighbours = &summary.percentiles;
    let neighbours = StructArray::try_new(
        NEIGHBOURS.clone(),
        vec![
            floats(percentiles.to_vec()),
            floats(neighbours.iter().map(|n| n.below).collect()),
            floats(neighbours.iter().map(|n| n.above).collect()),
            floats(neighbours.iter().map(|n| n.fraction).collect()),
        ],
        None,
    )?;
    let lists = ListArray::try_new(
        item(DataType::Struct(NEIGHBOURS.clone())),
        OffsetBuffer::from_lengths([percentiles.len()]),
        Arc::new(neighbours),
        None,
    )?;
    let n = i64::try_from(summary.n).unwrap_or(i64::MAX);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![n])),
        floats(vec![summary.mean]),
        floats(vec![summary.std]),
        floats(vec![summary.min]),
        floats(vec![summary.max]),
        Arc::new(lists),
    ];
    Ok(StructArray::try_new(SUMMARY.clone(), columns, None)?)
}
