//! A disk that refuses: outcomes and states wait in the store, and the engine goes on.

use super::*;
use crate::queue::sqlite::faults::{self, Disk};

/// Two attempts under way when the disk begins to refuse; one fails, and its endpoint's state is with the store.
async fn refused(dir: &Path) -> (World, Arc<Disk>, EndpointId) {
    let disk = Disk::under(dir);
    let options = Options {
        vfs: Some(faults::NAME),
        ..Options::default()
    };
    let world = World::new_with(dir, options).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.kept().await;
    world.script.set("crm", &[Act::Hang]);
    world.send(id, 2).await;
    world
        .until("both are under way", |world| world.script.count("crm") == 2)
        .await;
    disk.write_fails.store(rusqlite::ffi::SQLITE_FULL, Ordering::SeqCst);
    world.script.set("crm", &[Act::Answer(500), Act::Hang]);
    world
        .until_view(id, "one failure", |view| view.consecutive_failures == 1)
        .await;
    world.kept().await;
    (world, disk, id)
}

#[tokio::test]
async fn the_board_hears_of_failures_while_the_disk_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let (world, disk, id) = refused(dir.path()).await;
    world.script.set("crm", &[Act::Answer(500)]);
    world
        .until_view(id, "the second failure", |view| view.consecutive_failures == 2)
        .await;
    disk.write_fails.store(0, Ordering::SeqCst);
    world.settled().await;
    world
        .until("the state is kept", |world| world.queue.unrecorded() == 0)
        .await;
}

#[tokio::test]
async fn a_drain_ends_while_the_disk_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let (mut world, _disk, _id) = refused(dir.path()).await;
    let engine = world.engine.take().unwrap();
    let drained = tokio::time::timeout(PATIENCE, engine.drain(Duration::from_millis(50))).await;
    assert_eq!(drained, Ok(false), "it ends, and says that not all was recorded");
}
