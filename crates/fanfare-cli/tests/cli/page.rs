//! The page of a coordinator, in a real browser.

use std::fs;

use crate::browser::Browser;
use crate::http::get;
use crate::monitor::Asked;
use crate::support::eventually;

const SERVICES: &str = r#"
[services."t.waits"]
exec = ["sh", "-c", "while ! test -e go-$FANFARE_KEY; do sleep 0.02; done; cat"]
[services."t.hostile"]
exec = ["sh", "-c", "cat >&2; exit 3"]
"#;

const MARKUP: &str = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";

#[test]
fn fan_out_appears_on_the_page_advances_and_ends() {
    let Some(browser) = Browser::start() else { return };
    let asked = Asked::start("page", SERVICES, "t.waits");
    browser.open(&format!("http://{}/", asked.coordinator.address()));
    let targets = ["--target", "a@t.waits", "--target", "b@t.waits", "--on-final", "helpers.input-logger"];
    assert_eq!(asked.invoke(&[&["--cid", "watched"], &targets[..]].concat()).exit, 0);

    let is_open = |tally: &str| {
        browser.rows("open").iter().any(|row| row[0] == "watched" && row[1] == "test" && row[4] == tally)
    };
    eventually("the fan-out appears", || is_open("0 of 2"));
    fs::write(asked.path().join("go-a"), "").unwrap();
    eventually("the fan-out advances", || is_open("1 of 2"));
    fs::write(asked.path().join("go-b"), "").unwrap();
    let ended = || browser.rows("ended").into_iter().find(|row| row[1] == "watched");
    eventually("the fan-out ends", || {
        ended().is_some_and(|row| row[4] == "2 of 2" && row[5] == "responses")
            && browser.rows("open").is_empty()
    });
    // Script and style are those that the policy names, or neither would be there.
    assert_eq!(
        browser.value_of("getComputedStyle(document.querySelector('table')).borderCollapse"),
        "collapse"
    );
    let drawn = "document.querySelectorAll('polyline[points]').length";
    eventually("the plots are drawn", || browser.value_of(drawn) == 5);
}

#[test]
fn failure_is_shown_on_the_page_and_no_markup_in_it_executes() {
    let Some(browser) = Browser::start() else { return };
    let asked = Asked::start("markup", SERVICES, "t.hostile");
    let address = asked.coordinator.address();
    browser.open(&format!("http://{address}/"));
    let target = format!("{}@t.hostile={}", "<b>key</b>", serde_json::json!(MARKUP));
    assert_eq!(asked.invoke(&["--target", &target, "--on-final", "helpers.input-logger"]).exit, 0);

    let failure = || browser.rows("failures").into_iter().find(|row| row[2] == "<b>key</b>");
    eventually("the failure is shown", || failure().is_some());
    let exception = failure().unwrap().swap_remove(4);
    assert!(exception.contains("onerror="), "{exception}");
    assert_eq!(browser.value_of("document.title"), "Fanfare");
    assert_eq!(browser.value_of("document.querySelectorAll('img, b b, tbody script').length"), 0);
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
