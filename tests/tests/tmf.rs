//! Task management under load: ABORT TASK ends exactly one command, LUN RESET all of a LUN; others' data stays right.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use scst_tests::rng::stamped_blocks;
use scst_tests::scsi::{self, status};
use scst_tests::session::{Error, tmf};
use scst_tests::{Command, Server, ServerOptions, Session, WireError};

/// Unit attention: something was reset (29h).
const RESET_OCCURRED: u8 = 0x29;

fn server() -> Server {
    Server::start(&ServerOptions::lun("64M").cpus(2))
}

fn held_write(server: &Server, s: &mut Session, lba: u64) -> u32 {
    let write = Command::write(
        server.lun(0),
        scsi::write16(lba, 256),
        vec![0xaa; 128 << 10],
    );
    let tag = s.submit(&write.solicited().held()).unwrap();
    while s.held(tag).is_empty() {
        s.pump(Instant::now() + s.wire.timeout).unwrap();
    }
    tag
}

/// True if nothing comes for the command within `time`.
fn is_silent(s: &mut Session, tag: u32, time: Duration) -> bool {
    let old = std::mem::replace(&mut s.wire.timeout, time);
    let result = s.wait_scsi(tag);
    s.wire.timeout = old;
    matches!(result, Err(Error::Wire(WireError::Timeout)))
}

#[test]
fn abort_task_ends_a_write_that_waits_for_data_and_no_other() {
    let server = server();
    let mut s = server.session(1);
    let victim = held_write(&server, &mut s, 0);
    let other = held_write(&server, &mut s, 1000);
    assert_eq!(
        s.tmf(tmf::ABORT_TASK, server.lun(0), Some(victim)).unwrap(),
        tmf::COMPLETE
    );
    assert!(
        is_silent(&mut s, victim, Duration::from_millis(300)),
        "an aborted command was answered"
    );
    s.answer_held(other).unwrap();
    assert!(s.wait_scsi(other).unwrap().is_good());
    s.expect_blocks(server.lun(0), 0, &vec![0; 128 << 10]);
    s.expect_blocks(server.lun(0), 1000, &vec![0xaa; 128 << 10]);
    s.assert_clean();
}

#[test]
fn abort_task_of_a_finished_command_is_answered() {
    let server = server();
    let mut s = server.session(1);
    let tag = s
        .submit(&Command::new(server.lun(0), scsi::test_unit_ready()))
        .unwrap();
    s.wait_scsi(tag).unwrap().good();
    // RFC 7143 11.5.1: "task does not exist", or "function complete" as its CmdSN was in the window.
    let response = s.tmf(tmf::ABORT_TASK, server.lun(0), Some(tag)).unwrap();
    assert!(
        [tmf::COMPLETE, tmf::NO_TASK].contains(&response),
        "{response}"
    );
    s.scsi(&Command::new(server.lun(0), scsi::test_unit_ready()))
        .unwrap()
        .good();
    s.assert_clean();
}

#[test]
fn aborts_race_with_completions_and_every_command_ends_once() {
    let server = server();
    let lun = server.lun(0);
    let mut s = server.session(1);
    for round in 0..200u64 {
        let data = stamped_blocks(round * 64, 64, round);
        let write = Command::write(lun, scsi::write16(round * 64, 64), data.clone());
        let tag = s.submit(&write).unwrap();
        let abort = s.submit_tmf(tmf::ABORT_TASK, lun, Some(tag)).unwrap();
        let response = s.wait(abort).unwrap();
        // Completed before the abort came (its response precedes the function's), or aborted without one. What comes
        // after the function's response would be a late answer, seen as such by the session.
        s.nop(b"fence", true).unwrap();
        let old = std::mem::replace(&mut s.wire.timeout, Duration::from_millis(1));
        let ended = s.wait_scsi(tag);
        s.wire.timeout = old;
        match ended {
            Ok(reply) => assert!(reply.is_good(), "round {round}: {reply} {response:?}"),
            Err(Error::Wire(WireError::Timeout)) => {}
            Err(e) => panic!("round {round}: {e}"),
        }
    }
    s.assert_clean();
}

#[test]
fn lun_reset_ends_all_commands_of_the_lun_and_tells_other_sessions() {
    let server = server();
    let lun = server.lun(0);
    let mut a = server.session(1);
    let mut b = server.session(2);
    let tags: Vec<u32> = (0..4)
        .map(|i| held_write(&server, &mut a, i * 1000))
        .collect();
    assert_eq!(
        b.tmf(tmf::LOGICAL_UNIT_RESET, lun, None).unwrap(),
        tmf::COMPLETE
    );
    // No answer to the aborted commands (TAS=0), one unit attention for the session that did not ask.
    let reply = a.scsi(&Command::new(lun, scsi::test_unit_ready())).unwrap();
    let (key, asc, _) = reply.sense_code();
    assert_eq!(
        (reply.status, key, asc),
        (status::CHECK_CONDITION, 6, RESET_OCCURRED),
        "{reply}"
    );
    a.scsi(&Command::new(lun, scsi::test_unit_ready()))
        .unwrap()
        .good();
    for tag in tags {
        assert!(
            is_silent(&mut a, tag, Duration::from_millis(50)),
            "an aborted command was answered"
        );
    }
    a.expect_blocks(lun, 0, &vec![0; 128 << 10]);
    b.clear_ua(lun).unwrap();
    b.write_blocks(lun, 0, &[1; 512]).unwrap();
    a.expect_blocks(lun, 0, &[1; 512]);
    a.assert_clean();
}

#[test]
fn lun_resets_under_load_leave_no_stuck_command() {
    let server = server();
    let lun = server.lun(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..3u32)
            .map(|n| {
                let (server, stop) = (&server, &stop);
                scope.spawn(move || work_under_resets(server, n, stop))
            })
            .collect();
        let mut resetter = server.session(50);
        for _ in 0..50 {
            let response = resetter.tmf(tmf::LOGICAL_UNIT_RESET, lun, None).unwrap();
            assert_eq!(response, tmf::COMPLETE);
            thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            let (done, lost) = worker.join().expect("a worker failed");
            println!("{done} transfers verified, {lost} aborted by a reset");
            assert!(done > 0);
        }
        // Everything still works, and nothing blocks the device.
        resetter.clear_ua(lun).unwrap();
        resetter.write_blocks(lun, 0, &[3; 512]).unwrap();
    });
    if !Server::is_external() {
        assert!(server.stop().success());
    }
}

/// Writes and reads back; a command that a reset took gets no answer, which only time shows.
fn work_under_resets(server: &Server, n: u32, stop: &AtomicBool) -> (u64, u64) {
    const PATIENCE: Duration = Duration::from_millis(500);
    let lun = server.lun(0);
    let mut s = server.session(60 + n);
    s.wire.timeout = PATIENCE;
    let (mut done, mut lost, mut generation) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        generation += 1;
        let lba = u64::from(n) * 4096;
        let data = stamped_blocks(lba, 128, generation);
        let write = Command::write(lun, scsi::write16(lba, 128), data.clone());
        let read = Command::read(lun, scsi::read16(lba, 128), 64 << 10);
        let mut outcome = || -> Result<bool, Error> {
            // A unit attention means that the command was not executed.
            if !s.scsi(&write)?.is_good() {
                return Ok(false);
            }
            let reply = s.scsi(&read)?;
            if reply.is_good() {
                assert!(reply.data_in == data, "wrong data after a reset");
            }
            Ok(reply.is_good())
        };
        match outcome() {
            Ok(true) => done += 1,
            Ok(false) => lost += 1,
            Err(Error::Wire(WireError::Timeout)) => lost += 1,
            Err(e) => panic!("worker {n}: {e}"),
        }
    }
    (done, lost)
}

#[test]
fn functions_for_no_lun_or_unknown_functions_are_refused() {
    let server = server();
    let mut s = server.session(1);
    // LUN does not exist.
    assert_eq!(s.tmf(tmf::LOGICAL_UNIT_RESET, 200, None).unwrap(), 2);
    match s.tmf(0x7f, server.lun(0), None) {
        // Not supported, or rejected.
        Ok(response) => assert!([5, 255].contains(&response), "{response}"),
        Err(Error::Rejected(_)) => {}
        Err(e) => panic!("{e}"),
    }
    // There is no connection recovery (ErrorRecoveryLevel 0).
    match s.tmf(tmf::TASK_REASSIGN, server.lun(0), Some(1)) {
        Ok(response) => assert!([1, 4, 5, 255].contains(&response), "{response}"),
        Err(Error::Rejected(_)) => {}
        Err(e) => panic!("{e}"),
    }
    s.scsi(&Command::new(server.lun(0), scsi::test_unit_ready()))
        .unwrap()
        .good();
}
