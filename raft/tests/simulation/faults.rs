//! What is broken while clients work: several things at once, each for a while.

use crate::disk::Crash;
use crate::network::Conditions;
use crate::world::World;
use ragged_raft::group::Beginning;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// How long things are broken.
pub const LASTS: Duration = Duration::from_secs(6);

const MILLIS: fn(u64) -> Duration = Duration::from_millis;

/// Breaks one thing after the other without waiting until the one before is mended.
pub async fn break_things(world: &Arc<World>) {
    let end = world.now() + LASTS;
    while world.now() < end {
        sleep(world.between(MILLIS(20), MILLIS(1_000))).await;
        tokio::spawn(break_something(world.clone()));
    }
}

async fn break_something(world: Arc<World>) {
    let victim = victim(&world);
    match world.below(15) {
        3 if world.chances(400) => {
            let all: Vec<usize> = (0..world.size()).collect();
            crash(&world, &all, Crash::Power, "power of all").await;
        }
        0 | 3 => crash(&world, &[victim], Crash::Process, "kill").await,
        1 | 2 => crash(&world, &[victim], Crash::Power, "power").await,
        4 => {
            world.broke("stop", &format!("{victim} is stopped"));
            world.stop(victim).await;
            sleep(world.between(MILLIS(10), MILLIS(1_500))).await;
            world.start(victim, Beginning::Join).await;
        }
        5 => {
            world.broke("restart", &format!("the replica of {victim} is started again"));
            world.restart_group(victim, false).await;
        }
        6 | 7 => pause(&world, victim).await,
        8 => cut(&world, "isolate", |from, to| from == victim || to == victim).await,
        9 => cut(&world, "one-way", |from, _| from == victim).await,
        10 => {
            let side = world.below(1 << world.size());
            cut(&world, "split", |from, to| (side >> from & 1) != (side >> to & 1)).await;
        }
        11 => {
            world.broke("bad network", "the network gets bad");
            let (lost, doubled, slowest) = (world.below(300) as u32, world.below(200) as u32, 2_000 + world.below(150_000));
            change_network(&world, |network| (network.lost, network.doubled, network.takes_us.1) = (lost, doubled, slowest));
            sleep(world.between(MILLIS(500), MILLIS(4_000))).await;
            change_network(&world, |network| (network.lost, network.doubled, network.takes_us.1) = (0, 0, 2_000));
        }
        12 => {
            world.broke("slow disk", &format!("the disk of {victim} gets slow"));
            world.slow_disks.lock()[victim] = 500;
            sleep(world.between(MILLIS(500), MILLIS(4_000))).await;
            world.slow_disks.lock()[victim] = 0;
        }
        13 => {
            let kept = world.below(6);
            world.broke("purge", &format!("{victim} purges its log but for {kept} entries"));
            if let Some((host, group)) = world.running(victim) {
                drop(host.spawn(async move { group.group().purge_log(kept).await }).await);
            }
        }
        _ => {
            let is_dead = world.chances(500);
            world.broke("election", &format!("{victim} stands for election, the leader is dead: {is_dead}"));
            if let Some((host, group)) = world.running(victim) {
                drop(host.spawn(async move { group.group().stand_for_election(is_dead).await }).await);
            }
        }
    }
}

/// The leader more often than others.
fn victim(world: &World) -> usize {
    let any = world.below(world.size() as u64) as usize;
    if world.chances(400) { world.leader().map_or(any, |(leader, _, _)| leader) } else { any }
}

async fn crash(world: &Arc<World>, victims: &[usize], crash: Crash, fault: &'static str) {
    world.broke(fault, &format!("{victims:?} crash: {crash:?}"));
    victims.iter().for_each(|victim| world.crash(*victim, crash));
    for victim in victims {
        sleep(world.between(MILLIS(1), MILLIS(1_500))).await;
        world.start(*victim, Beginning::Join).await;
    }
}

async fn pause(world: &Arc<World>, victim: usize) {
    let Some(host) = world.host(victim) else { return };
    world.broke("pause", &format!("{victim} stands still"));
    host.pause();
    sleep(world.between(MILLIS(20), MILLIS(4_000))).await;
    world.note(&format!("{victim} goes on"), b"");
    host.resume();
}

async fn cut(world: &Arc<World>, fault: &'static str, is_cut: impl Fn(usize, usize) -> bool) {
    let numbers = 0..world.size();
    let ways = numbers.clone().flat_map(|from| numbers.clone().map(move |to| (from, to)));
    let cut: Vec<(usize, usize)> = ways.filter(|(from, to)| from != to && is_cut(*from, *to)).collect();
    world.broke(fault, &format!("nothing gets through {cut:?}"));
    change_network(world, |network| network.cut.extend(&cut));
    sleep(world.between(MILLIS(100), MILLIS(4_000))).await;
    change_network(world, |network| network.cut.retain(|way| !cut.contains(way)));
}

fn change_network(world: &World, change: impl FnOnce(&mut Conditions)) {
    change(&mut world.network.lock());
}
