//! The page, in a real browser: of one coordinator, and of all.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::browser::{Browser, Scheme};
use crate::http::{ask_as, get};
use crate::monitor::Asked;
use crate::support::{Running, eventually, eventually_seen};

const SERVICES: &str = r#"
[services."t.waits"]
exec = ["sh", "-c", "while test -e fanfare.toml -a ! -e go-$FANFARE_KEY; do sleep 0.02; done; cat"]
[services."t.hostile"]
exec = ["sh", "-c", "cat >&2; exit 3"]
retry = { attempts = 1 }
[services."t.retried"]
exec = ["sh", "-c", "echo 'connection refused by warehouse-2' >&2; exit 3"]
retry = { attempts = 2, first_delay = "5m" }
"#;

const MARKUP: &str = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";
const FINAL: [&str; 2] = ["--on-final", "helpers.input-logger"];

fn dashboard(directory: &Path) -> Running {
    Running::start(directory, &["dashboard", "--listen", "127.0.0.1:0"], "serving metrics")
}

/// The rows of the timeline: the key with its service, what is said of it, and what its bars are.
fn timeline(browser: &Browser) -> Vec<[String; 3]> {
    let rows = "[...document.querySelectorAll('.row:not(.axis)')].map(row => [
        row.querySelector('.key').textContent, row.querySelector('.what').textContent,
        [...row.querySelectorAll('.track i')].map(it => it.className).join(' ')])";
    serde_json::from_value(browser.value_of(rows)).unwrap()
}

fn text_of(browser: &Browser, id: &str) -> String {
    browser.value_of(&format!("document.getElementById('{id}').textContent")).as_str().unwrap().to_owned()
}

#[test]
fn fan_out_appears_on_the_page_advances_and_ends() {
    let Some(browser) = Browser::start() else { return };
    let asked = Asked::start("page", SERVICES, "t.waits");
    browser.open(&format!("http://{}/", asked.coordinator.address()));
    let targets = ["--target", "a@t.waits", "--target", "b@t.waits"];
    asked.invoke(&[&["--cid", "watched"], &targets[..], &FINAL].concat()).succeeds();

    let is_open = |tally: &str| {
        browser.rows("open").iter().any(|row| row[0] == "watched" && row[1] == "test" && row[4] == tally)
    };
    eventually("the fan-out appears", || is_open("0 of 2"));
    fs::write(asked.path().join("go-a"), "").unwrap();
    eventually("the fan-out advances", || is_open("1 of 2"));
    fs::write(asked.path().join("go-b"), "").unwrap();
    let ended = || browser.rows("ended").into_iter().find(|row| row[0] == "watched");
    eventually("the fan-out ends", || {
        ended().is_some_and(|row| row[4] == "2 of 2" && row[5] == "all targets")
            && browser.rows("open").is_empty()
    });
    // Script and style are those that the policy names, or neither would be there.
    assert_eq!(
        browser.value_of("getComputedStyle(document.querySelector('table')).borderCollapse"),
        "collapse"
    );
    let drawn = "document.querySelectorAll('polyline[points]').length";
    eventually("the plots are drawn", || browser.value_of(drawn) == 6);
}

#[test]
fn failure_is_shown_on_the_page_and_no_markup_in_it_executes() {
    let Some(browser) = Browser::start() else { return };
    let asked = Asked::start("markup", SERVICES, "t.hostile");
    let dashboard = dashboard(asked.path());
    let address = dashboard.address();
    browser.open(&format!("http://{address}/"));
    let target = format!("{}@t.hostile={}", "<b>key</b>", serde_json::json!(MARKUP));
    asked.invoke(&[&["--cid", "hostile", "--target", &target], &FINAL[..]].concat()).succeeds();

    let failure = || browser.rows("failures").into_iter().find(|row| row[2] == "<b>key</b>");
    eventually("the failure is shown", || failure().is_some());
    let exception = failure().unwrap().swap_remove(4);
    assert!(exception.contains("onerror="), "{exception}");
    // The same on the page of its fan-out.
    browser.value_of("document.querySelector('#failures a').click()");
    eventually("its fan-out is shown", || {
        browser.rows("exceptions").iter().any(|row| row[0] == "<b>key</b>" && row[2] == exception)
    });
    assert_eq!(timeline(&browser)[0][0], "<b>key</b>t.hostile");
    assert_eq!(timeline(&browser)[0][2], "bad");
    assert_eq!(browser.value_of("document.title"), "Fanfare");
    assert_eq!(
        browser.value_of("document.querySelectorAll('img, b b, tbody script, main script').length"),
        0
    );
    // Were it ever to become markup, the policy would not let it run.
    browser.value_of(
        "document.body.insertAdjacentHTML('beforeend', '<img id=smuggled src=x onerror=\"document.title=1\">'),
         document.getElementById('smuggled').addEventListener('error', () => { window.refused = true })",
    );
    eventually("the image is refused", || browser.value_of("window.refused === true") == true);
    assert_eq!(browser.value_of("document.title"), "Fanfare");
    let policy = get(&address, "/").headers;
    assert!(policy.contains("default-src 'none'; script-src 'sha256-"), "{policy}");
}

#[test]
fn fan_out_whose_cid_would_be_a_step_in_a_path_has_a_page_too() {
    let Some(browser) = Browser::start() else { return };
    let asked = Asked::start("dots", SERVICES, "t.waits");
    let dashboard = dashboard(asked.path());
    for address in [asked.coordinator.address(), dashboard.address()] {
        for cid in [".", "..", "a:b"] {
            browser.open(&format!("http://{address}/"));
            let target = format!("key-of-{cid}@t.waits");
            asked.invoke(&[&["--cid", cid, "--target", &target], &FINAL[..]].concat()).succeeds();
            eventually("the fan-out appears", || browser.rows("open").iter().any(|row| row[0] == cid));
            let link =
                format!("[...document.querySelectorAll('#open a')].find(it => it.textContent === '{cid}')");
            // As somebody opens it who was given the address.
            let href = browser.value_of(&format!("{link}.href"));
            browser.open("about:blank");
            browser.open(href.as_str().unwrap());
            let key = format!("key-of-{cid}t.waits");
            eventually("its target is shown", || timeline(&browser).iter().any(|row| row[0] == key));
            assert_eq!(text_of(&browser, "cid"), cid);
            asked.run(&["cancel", "--", cid]).succeeds();
        }
    }
}

#[test]
fn timeline_has_a_bar_for_each_target_that_says_what_becomes_of_it() {
    let Some(browser) = Browser::start() else { return };
    let asked = Asked::start("timeline", SERVICES, "t.waits");
    let dashboard = dashboard(asked.path());
    let targets = ["a@t.waits", "b@t.waits", "bad@t.hostile=1", "again@t.retried", "nobody"];
    let targets: Vec<&str> = targets.into_iter().flat_map(|target| ["--target", target]).collect();
    let invoked = ["--cid", "drawn", "--declare-missing"];
    asked.invoke(&[&invoked[..], &targets, &FINAL].concat()).succeeds();
    browser.open(&format!("http://{}/", dashboard.address()));
    eventually("the fan-out appears", || browser.rows("open").iter().any(|row| row[0] == "drawn"));
    browser.value_of("document.querySelector('#open a').click()");

    let shows = |what: &str, expected: [(&str, &str, &str); 5]| {
        eventually_seen(
            what,
            || timeline(&browser),
            |rows| {
                rows.len() == expected.len()
                    && rows.iter().zip(expected).all(|([key, what, bars], expected)| {
                        (key.as_str(), bars.as_str()) == (expected.0, expected.2) && what.contains(expected.1)
                    })
            },
        );
    };
    let [bad, again, nobody] = [
        ("badt.hostile", "failed after ", "bad"),
        ("againt.retried", "attempt 1 failed; next in ", "waits gone"),
        ("nobody", "waits in its queue", "waits"),
    ];
    let runs = |key| (key, "runs for ", "waits under-way");
    shows("two run", [runs("at.waits"), runs("bt.waits"), bad, again, nobody]);
    assert!(text_of(&browser, "advice").contains("no worker consumes"), "{}", text_of(&browser, "advice"));
    fs::write(asked.path().join("go-a"), "").unwrap();
    let responded = |key| (key, "responded after ", "good");
    shows("one has responded", [responded("at.waits"), runs("bt.waits"), bad, again, nobody]);

    fs::write(asked.path().join("go-b"), "").unwrap();
    shows("both have", [responded("at.waits"), responded("bt.waits"), bad, again, nobody]);
    asked.run(&["cancel", "drawn"]).succeeds();
    let missing = |key| (key, "missing at the cancel, after ", "gone");
    let others = [missing("againt.retried"), missing("nobody")];
    shows(
        "the others are missing",
        [responded("at.waits"), responded("bt.waits"), bad, others[0], others[1]],
    );
    // It publishes its callbacks before it has ended.
    eventually_seen("it has ended", || text_of(&browser, "facts"), |facts| facts.contains("Ended bycancel"));
}

#[test]
fn dashboard_shows_the_fan_outs_of_all_coordinators_and_names_one_that_was_killed() {
    let Some(browser) = Browser::start() else { return };
    // Each has room for one.
    let asked = Asked::start_with(
        "two",
        SERVICES,
        "t.waits",
        &[("FANFARE_COORDINATOR_PREFETCH", "1"), ("FANFARE_COORDINATOR_CHANNELS", "1")],
    );
    let second = asked.another_coordinator();
    let dashboard = dashboard(asked.path());
    browser.open(&format!("http://{}/", dashboard.address()));
    for cid in ["one", "two"] {
        let target = format!("{cid}@t.waits");
        asked.invoke(&[&["--cid", cid, "--target", &target], &FINAL[..]].concat()).succeeds();
    }
    let open = || {
        let mut open: Vec<String> =
            browser.rows("open").into_iter().map(|mut row| row.swap_remove(0)).collect();
        open.sort_unstable();
        open
    };
    eventually("both fan-outs appear", || open() == ["one", "two"]);
    assert_eq!(browser.value_of("document.querySelectorAll('#coordinators li:not(.silent)').length"), 2);

    let name = format!(":{}", second.id());
    second.stop(Signal::KILL);
    let silent = "[...document.querySelectorAll('.silent')].map(it => it.textContent).join()";
    eventually("it is named", || {
        let silent = browser.value_of(silent);
        silent
            .as_str()
            .is_some_and(|silent| silent.contains(&format!("{name} does not answer; it did last at ")))
    });
    eventually("its fan-out waits for room", || {
        open().len() == 1
            && text_of(&browser, "waiting") == "1 fan-out more wait until a coordinator has room"
    });
    for key in ["go-one", "go-two"] {
        fs::write(asked.path().join(key), "").unwrap();
    }
    eventually("the other coordinator ends both", || {
        let ended: Vec<_> = browser.rows("ended").into_iter().map(|row| row[0].clone()).collect();
        ["one", "two"].iter().all(|cid| ended.iter().any(|ended| ended == cid))
    });
}

#[test]
fn worker_pools_are_shown_and_what_is_parked_only_to_who_asks_for_it() {
    let Some(browser) = Browser::start() else { return };
    let asked = Asked::start("pools", SERVICES, "t.hostile");
    let dashboard = dashboard(asked.path());
    let invoked = ["--cid", "parked", "--target", "helpers.echo", "--target", "nobody", "--declare-missing"];
    let invoked =
        [&invoked[..], &["--on-target", "t.hostile", "--on-final", "helpers.input-logger"]].concat();
    asked.invoke(&invoked).succeeds();
    browser.open(&format!("http://{}/", dashboard.address()));
    let pool = |service: &str, expected: [&str; 2]| {
        browser.rows("pools").iter().any(|row| row[0] == service && row[1..] == expected)
    };
    eventually("the pools are shown", || pool("nobody", ["1", "0"]) && pool("helpers.echo", ["0", "1"]));
    eventually("the failed callback is counted", || text_of(&browser, "parked-count") == "1");
    assert!(browser.rows("parked").is_empty(), "nobody has asked");
    browser.value_of("document.getElementById('look').click()");
    let to_prefix = format!(" --prefix {}", asked.prefix());
    eventually("it is told why, and what shows it whole", || {
        browser.rows("parked").iter().any(|row| {
            let why = &row[3];
            row[1] == "t.hostile"
                && why.contains("t.hostile failed: ")
                && why.contains("fanfare parked show ")
                && why.ends_with(&to_prefix)
        })
    });
    asked.run(&["parked", "list"]).succeeds();
    assert!(asked.run(&["parked", "list", "--json"]).stdout.contains("\"matching\":1"), "it is still there");
}

#[test]
fn page_for_this_host_alone_answers_to_no_other_name() {
    let directory = tempfile::tempdir().unwrap();
    let dashboard = dashboard(directory.path());
    let address = dashboard.address();
    for (host, status) in [(&*address, 200), ("localhost", 200), ("rebound.example", 421)] {
        assert_eq!(ask_as(host, &address, "GET", "/", "").status, status, "{host}");
    }
    for query in ["", "?cid=a", "?cid=a&run=b", "?cid=%20&run=0123456789abcdef0123456789abcdef"] {
        assert_eq!(get(&address, &format!("/api/fan-out{query}")).status, 404, "{query}");
    }
}

/// What the pictures of docs/operations.md show. `FANFARE_TEST_SCREENSHOTS` names the folder for them.
#[test]
fn page_fits_a_phone_and_a_desk() {
    let Some(browser) = Browser::start() else { return };
    let pictures = std::env::var_os("FANFARE_TEST_SCREENSHOTS");
    // It logs nothing: what nobody reads of a worker's log must not fill its pipe.
    let done = ["--on-final", "helpers.echo"];
    let asked = Asked::start("pictures", PICTURED, "price.quote");
    let _second = asked.another_coordinator();
    let dashboard = dashboard(asked.path());
    let catalog: Vec<&str> = CATALOG.into_iter().flat_map(|target| ["--target", target]).collect();
    let catalog =
        [&["--source", "catalog.nightly", "--cid", "catalog-2025-11-27"], &catalog[..], &done].concat();
    asked.run(&[&["invoke", "--declare-missing"], &catalog[..]].concat()).succeeds();
    let order = |n: usize| {
        let cid = format!("order-{}", 81_120 + n);
        // One of four has a target that fails, and one of nine waits for a service that nobody serves.
        let last = match (n % 4, n % 9) {
            (_, 4) => "label@report.print=3",
            (1, _) => "invoice@ledger.write=3",
            _ => "price.quote=3",
        };
        let targets = ["--target", "first@price.quote=1", "--target", "stock.reserve=2", "--target", last];
        let order = [&["invoke", "--source", "shop.checkout", "--cid", &cid], &targets[..], &done];
        asked.run(&order.concat()).succeeds();
    };
    browser.open(&format!("http://{}/", dashboard.address()));
    let history = "document.querySelector('polyline').getAttribute('points')?.split(' ').length ?? 0";
    let (mut orders, mut seen) = (0, 0);
    let looks = if pictures.is_some() { 20 } else { 2 };
    eventually("the page has something to show", || {
        let now = browser.value_of(history).as_u64().unwrap();
        // Some more at each look.
        for _ in 0..if now > seen { 1 + now % 4 } else { 0 } {
            order(orders);
            orders += 1;
        }
        seen = now;
        now >= looks && !browser.rows("failures").is_empty()
    });
    let check = |what: &str, desk: u32, phone: u32| {
        for (device, width, height) in [("desk", 1280, desk), ("phone", 390, phone)] {
            for scheme in [Scheme::Light, Scheme::Dark] {
                browser.shows(width, height, scheme);
                assert_eq!(
                    browser.value_of("document.documentElement.scrollWidth"),
                    width,
                    "{what} {device}"
                );
                if let Some(folder) = &pictures {
                    let name = format!("{what}-{device}-{}.webp", scheme.as_str());
                    fs::write(Path::new(folder).join(name), browser.picture()).unwrap();
                }
            }
        }
    };
    check("fan-outs", 1400, 1300);
    browser.value_of(
        "[...document.querySelectorAll('#open a')].find(it => it.textContent.startsWith('catalog')).click()",
    );
    eventually("the timeline is drawn", || {
        let rows = timeline(&browser);
        ["under-way", "good", "bad", "gone"].iter().all(|bar| rows.iter().any(|row| row[2].ends_with(bar)))
    });
    check("fan-out", 860, 1160);
}

const PICTURED: &str = r#"
[services."price.quote"]
exec = ["cat"]
[services."stock.reserve"]
exec = ["cat"]
[services."ledger.write"]
exec = ["sh", "-c", "echo 'no account for customer 4711' >&2; exit 3"]
retry = { attempts = 1 }
[services."image.resize"]
exec = ["sh", "-c", "while test $FANFARE_KEY = page-3 -a -e fanfare.toml; do sleep 1; done; sleep ${FANFARE_KEY#page-}; cat"]
timeout = "10m"
[services."stock.check"]
exec = ["sh", "-c", "echo 'warehouse-2 does not answer: connection refused (os error 111)' >&2; exit 3"]
retry = { attempts = 3, first_delay = "50s" }
"#;

const CATALOG: [&str; 7] = [
    "price.quote=1",
    "page-1@image.resize=1",
    "page-2@image.resize=2",
    "page-3@image.resize=3",
    "warehouse-2@stock.check",
    "ledger.write",
    "report.print",
];
