//! What a build for tests adds to a node: known bugs that are switched on by `RAGGED_MUTANT`, and points at which it is killed, armed by
//! `RAGGED_FAILPOINTS` or, while it runs, by what is written to the file that `RAGGED_FAILPOINTS_FILE` names. docs/mutants.md tells how they are used.

/// Does what the environment asks for, and says so in the log. A name that is not known ends the start.
pub fn start() -> anyhow::Result<()> {
    #[cfg(feature = "mutants")]
    mutants()?;
    #[cfg(feature = "failpoints")]
    points()?;
    Ok(())
}

/// Prints the mutants and the points: their names, when nodes come by, and what they are; for `ragged-chaos`.
pub fn list() {
    #[cfg(feature = "mutants")]
    for mutant in ragged_raft::mutant::Mutant::ALL {
        println!("mutant\t{}\t\t{}", mutant.name(), mutant.meaning());
    }
    #[cfg(feature = "failpoints")]
    for point in ragged_raft::failpoints::Point::ALL {
        println!("point\t{}\t{}\t{}", point.name(), point.moment().name(), point.meaning());
    }
}

#[cfg(feature = "mutants")]
fn mutants() -> anyhow::Result<()> {
    let names = std::env::var("RAGGED_MUTANT").unwrap_or_default();
    for mutant in ragged_raft::mutant::switch_on(&names)? {
        tracing::warn!(mutant = mutant.name(), "THIS NODE IS BROKEN ON PURPOSE, it loses or garbles data: {}", mutant.meaning());
    }
    Ok(())
}

#[cfg(feature = "failpoints")]
fn points() -> anyhow::Result<()> {
    use ragged_raft::failpoints::arm;
    use std::time::Duration;

    if let Ok(settings) = std::env::var("RAGGED_FAILPOINTS") {
        tracing::warn!(settings, "THIS NODE IS KILLED ON PURPOSE at points of its code");
        arm(&settings)?;
    }
    if let Some(file) = std::env::var_os("RAGGED_FAILPOINTS_FILE") {
        std::thread::spawn(move || {
            let mut armed = String::new();
            loop {
                let settings = std::fs::read_to_string(&file).unwrap_or_default(); // it may not be there yet
                if settings != armed {
                    tracing::warn!(settings, "THIS NODE IS KILLED ON PURPOSE at points of its code");
                    if let Err(fault) = arm(&settings) {
                        tracing::error!(%fault, "nothing is armed");
                    }
                    armed = settings;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
    }
    Ok(())
}
