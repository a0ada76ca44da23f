//! Kills at named points.
use crate::cluster::Installation;
use anyhow::Result;
/// To come.
pub async fn run(_installation: Installation, _names: Vec<String>) -> Result<bool> {
    Ok(false)
}
