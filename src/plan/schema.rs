//! The JSON Schema of a plan file, for editors.

use super::file::PlanFile;

/// The schema as it is kept in `config/plans.schema.json`.
pub fn schema() -> String {
    let schema = schemars::schema_for!(PlanFile);
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
    text.push('\n');
    text
}
