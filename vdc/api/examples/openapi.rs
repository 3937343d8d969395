//! Writes `openapi.json` anew: run it after a change of the wire types and commit the result.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let mut text = serde_json::to_string_pretty(&vdc_api::openapi())?;
    text.push('\n');
    std::fs::write(file, text)?;
    Ok(())
}
