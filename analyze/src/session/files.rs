//! Parquet files as tables.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use datafusion::logical_expr::SortExpr;

use super::Error;

/// Files as one table, read by DataFusion's own Parquet source; the rows of each
/// lie in `order`.
pub(super) fn parquet_files(
    urls: Vec<ListingTableUrl>,
    schema: SchemaRef,
    order: Vec<SortExpr>,
) -> Result<Arc<dyn TableProvider>, Error> {
    let format = Arc::new(ParquetFormat::default());
    let orders = [order].into_iter().filter(|order| !order.is_empty());
    let options = ListingOptions::new(format).with_file_sort_order(orders.collect());
    let config = ListingTableConfig::new_with_multi_paths(urls)
        .with_listing_options(options)
        .with_schema(schema);
    let provider = ListingTable::try_new(config).map_err(Error::Query)?;
    Ok(Arc::new(provider))
}

/// A path as a URL: a bare path would be searched for glob characters.
pub(super) fn file_url(path: &Path) -> Result<ListingTableUrl, Error> {
    let path_error = || Error::Path {
        path: path.to_owned(),
    };
    let absolute = std::path::absolute(path).map_err(|_| path_error())?;
    let text = absolute.to_str().ok_or_else(path_error)?;
    let mut url = String::from("file://");
    for byte in text.bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => url.push(byte.into()),
            byte if byte.is_ascii_alphanumeric() => url.push(byte.into()),
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    ListingTableUrl::parse(&url).map_err(|_| path_error())
}
