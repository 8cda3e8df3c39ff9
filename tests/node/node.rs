//! Tidings as a platform team runs it: the chart, installed by helm on a real node, with pods, probes, volumes and Services.
//!
//! `make node` runs it: a node of Kubernetes is started in namespaces of its own (as root), and the image that `make image`
//! made is loaded into it. All tests share the node, one after the other; each brings it to where it begins. The same program,
//! called `produce`, is what runs in the producers' pods. Where there can be no node every test is counted as ignored, and why
//! is said.

mod backup;
mod events;
mod faults;
mod install;
mod produce;
mod releases;
mod stage;
mod watched;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};
use tidings_cluster::{Helm, Prometheus, node, operator_definitions, skipped};

use stage::Stage;

type Test = fn(&mut Stage);

const TESTS: [(&str, Test); 10] = [
    (
        "install::pods_are_ready_under_the_restricted_standard_with_the_charts_own_values",
        install::pods_are_ready_under_the_restricted_standard_with_the_charts_own_values,
    ),
    (
        "events::an_event_from_a_pod_with_a_projected_token_reaches_a_receiver_in_another_pod",
        events::an_event_from_a_pod_with_a_projected_token_reaches_a_receiver_in_another_pod,
    ),
    (
        "watched::prometheus_scrapes_every_pod_that_the_service_monitor_selects_and_the_dashboard_shows_what_was_delivered",
        watched::prometheus_scrapes_every_pod_that_the_service_monitor_selects_and_the_dashboard_shows_what_was_delivered,
    ),
    (
        "releases::upgrade_and_rollback_lose_nothing_while_messages_wait_and_producers_send",
        releases::upgrade_and_rollback_lose_nothing_while_messages_wait_and_producers_send,
    ),
    (
        "releases::uninstall_keeps_queue_keys_and_definitions_and_a_second_install_picks_up_where_it_was",
        releases::uninstall_keeps_queue_keys_and_definitions_and_a_second_install_picks_up_where_it_was,
    ),
    (
        "releases::a_store_of_another_version_is_not_opened_and_is_replaced_as_the_page_says",
        releases::a_store_of_another_version_is_not_opened_and_is_replaced_as_the_page_says,
    ),
    (
        "releases::what_is_removed_for_good_is_gone_and_the_page_installs_it_anew",
        releases::what_is_removed_for_good_is_gone_and_the_page_installs_it_anew,
    ),
    (
        "backup::the_queue_is_copied_by_a_pod_and_restored_into_another_volume",
        backup::the_queue_is_copied_by_a_pod_and_restored_into_another_volume,
    ),
    (
        "faults::deleted_pods_lose_nothing_under_load",
        faults::deleted_pods_lose_nothing_under_load,
    ),
    (
        "faults::a_restart_of_the_kubelet_loses_nothing_under_load",
        faults::a_restart_of_the_kubelet_loses_nothing_under_load,
    ),
];

fn main() -> ExitCode {
    let called = std::env::args().next().unwrap_or_default();
    if Path::new(&called).file_name().is_some_and(|name| name == "produce") {
        return produce::main();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if arguments.list {
        return libtest_mimic::run(&arguments, ignored()).exit_code();
    }
    if !node::inside() {
        // Comes back only where there can be no node.
        let why = node::enter(prepare).expect("what a node needs is there");
        skipped(&format!("{} tests on a real node", TESTS.len()), &why.to_string());
        return libtest_mimic::run(&arguments, ignored()).exit_code();
    }
    let stage = Arc::new(Mutex::new(Stage::set()));
    let trials = TESTS.map(|(name, test)| {
        let stage = stage.clone();
        Trial::test(name, move || {
            // A test brings the stage to where it begins, whatever another left.
            let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
            test(&mut stage);
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.into());
    if conclusion.has_failed() {
        stage.lock().unwrap_or_else(PoisonError::into_inner).tell();
    }
    drop(stage);
    conclusion.exit_code()
}

/// What the tests take from a network: inside there is none.
fn prepare() -> anyhow::Result<()> {
    Helm::offline()?;
    Prometheus::ensure()?;
    operator_definitions().map(drop)
}

fn ignored() -> Vec<Trial> {
    let ignored = |(name, _)| Trial::test(name, || Ok(())).with_ignored_flag(true);
    TESTS.map(ignored).into()
}
