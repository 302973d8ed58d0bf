//! Replays logins recorded on kernel SCST against the login state machine.

mod login_common;

use iscsi_scst::login::Login;
use iscsi_scst::pdu::{Tsih, flags};
use login_common::{Discovery, Got, IQN, Keys, Server, encode, request, send, status};

struct Case<'a> {
    name: &'a str,
    env: Option<&'a str>,
    only: Vec<&'a str>,
    /// Login requests with what came back, or one text exchange.
    stages: Vec<(Vec<&'a str>, Keys, Option<Got>)>,
    discover: Option<(Keys, Keys)>,
}

fn parse(file: &str) -> Vec<Case<'_>> {
    let mut cases: Vec<Case<'_>> = Vec::new();
    let mut in_answer = false;
    for line in file
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix("case ") {
            cases.push(Case {
                name,
                env: None,
                only: vec![],
                stages: vec![],
                discover: None,
            });
            continue;
        }
        let case = cases.last_mut().expect("a case comes first");
        if let Some(env) = line.strip_prefix("env ") {
            case.env = Some(env);
        } else if let Some(only) = line.strip_prefix("only ") {
            case.only = only.split(' ').collect();
        } else if let Some(stage) = line.strip_prefix("> ") {
            case.stages.push((stage.split(' ').collect(), vec![], None));
        } else if line == "< closed" {
            case.stages.last_mut().expect("a request").2 = Some(Got::Closed);
        } else if let Some(got) = line.strip_prefix("< ") {
            let fields: Vec<&str> = got.split(' ').collect();
            let [class, detail, flags, opcode] = fields[..] else {
                panic!("{line}")
            };
            case.stages.last_mut().expect("a request").2 = Some(Got::Response {
                class: class.parse().unwrap(),
                detail: detail.parse().unwrap(),
                flags: u8::from_str_radix(flags, 16).unwrap(),
                opcode: u8::from_str_radix(opcode, 16).unwrap(),
                text: vec![],
            });
        } else if line == "discover" {
            case.discover = Some((vec![], vec![]));
            in_answer = false;
        } else if line == "=" {
            in_answer = true;
        } else if let Some(key) = line.strip_prefix('+') {
            let (key, value) = key.split_once('=').expect("key=value");
            let key = (key.to_owned(), value.replace("$IQN", IQN));
            match (case.stages.last_mut(), &mut case.discover) {
                (Some((_, _, Some(Got::Response { text, .. }))), _) => text.push(key),
                (Some((_, request, None)), _) => request.push(key),
                (_, Some((_, answer))) if in_answer => answer.push(key),
                (_, Some((request, _))) => request.push(key),
                _ => panic!("{line}"),
            }
        } else {
            panic!("{line}");
        }
    }
    cases
}

fn replay(case: &Case<'_>) -> Result<(), String> {
    let server = Server {
        enabled: case.env != Some("disabled"),
        chap: case.env == Some("chap"),
        ..Server::default()
    };
    if let Some((asked, answered)) = &case.discover {
        let got = Discovery::new(&server).ask(asked);
        return if got == *answered {
            Ok(())
        } else {
            Err(format!("{got:?}"))
        };
    }
    let mut login = Login::new();
    for (fields, text, recorded) in &case.stages {
        let number = |i: usize| fields[i].parse::<u8>().unwrap();
        let option = |name: &str| {
            fields
                .iter()
                .find_map(|f| f.strip_prefix(name))
                .map_or(0, |v| v.parse::<u16>().unwrap())
        };
        let transit = if number(2) == 1 { flags::FINAL } else { 0 };
        let mut header = request(transit | number(0) << 2 | number(1));
        header.tsih = Tsih(option("tsih=")).into();
        header.version_min = option("min=") as u8;
        header.version_max = option("max=") as u8;
        let outcome = send(&mut login, &server, &header, &encode(text));
        let mut recorded_only = recorded.clone();
        if let Some(Got::Response { text, .. }) = &mut recorded_only {
            text.retain(|(key, _)| case.only.is_empty() || case.only.contains(&key.as_str()));
        }
        let got = status(&outcome, &case.only);
        if recorded_only.as_ref() != Some(&got) {
            return Err(format!("got {got:?}\nrecorded {recorded:?}"));
        }
    }
    Ok(())
}

#[test]
fn recorded_logins_replay() {
    let cases = parse(include_str!("data/login.cases"));
    assert_eq!(cases.len(), 86);
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            replay(case)
                .err()
                .map(|why| format!("{}: {why}", case.name))
        })
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} differ\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}
