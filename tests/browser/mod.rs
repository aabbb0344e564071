//! Headless Chromium for the tests of our pages: opens a page from a file, fails on any error in it, and gives the test its document and a
//! picture.
//!
//! It speaks the DevTools protocol over two pipes (`--remote-debugging-pipe`: file descriptors 3 and 4, JSON ended by a zero byte), so it
//! needs no port and no other program.

#![allow(dead_code)] // each test crate uses a part of it

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Longest wait for an answer: a busy machine starts a browser slowly.
const PATIENCE: Duration = Duration::from_secs(120);

/// Switches without which Chromium needs a screen, a sandbox that containers lack, or its makers' servers.
const SWITCHES: [&str; 14] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    // WebGL on the processor.
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
];

/// A running browser; it ends when dropped.
pub struct Browser {
    child: Child,
    pipe: ChildStdin,
    messages: Receiver<Value>,
    next_id: u64,
    // Lives as long as the browser.
    profile: tempfile::TempDir,
}

/// How a page is viewed.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Width of the window, in pixels.
    pub width: u32,
    /// Whether the reader's system is dark.
    pub dark: bool,
}

impl Default for View {
    fn default() -> Self {
        View { width: 1200, dark: false }
    }
}

impl Browser {
    /// Starts the browser that `SAM_LADDER_CHROMIUM` names (`make test-pages` sets it), or `chromium`.
    pub fn start() -> Browser {
        let program = std::env::var("SAM_LADDER_CHROMIUM").unwrap_or_else(|_| "chromium".into());
        let profile = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(profile.path().join("stderr")).unwrap();
        // The shell puts our two pipes where the browser looks for them.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh", &program])
            .args(SWITCHES)
            .arg(format!("--user-data-dir={}", profile.path().join("data").display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("a shell starts");
        let pipe = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while matches!(answers.read_until(0, &mut message), Ok(length) if length > 0) {
                message.pop();
                if sender.send(serde_json::from_slice(&message).expect("the browser speaks JSON")).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Browser { child, pipe, messages, next_id: 0, profile };
        browser.call(None, "Browser.getVersion", json!({}), &mut Vec::new());
        browser
    }

    /// Opens a page from a file and waits until it is loaded.
    ///
    /// # Panics
    /// If the page writes an error to the console, throws an exception, or requests anything outside itself.
    pub fn open(&mut self, path: &Path, view: View) -> Page<'_> {
        let url =
            format!("file://{}", path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display())).display());
        let mut events = Vec::new();
        let target = self.call(None, "Target.createTarget", json!({ "url": "about:blank" }), &mut events);
        let attached =
            self.call(None, "Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }), &mut events);
        let session = attached["sessionId"].as_str().unwrap().to_string();
        let mut page = Page { browser: self, session, url: url.clone(), events };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        let metrics = json!({ "width": view.width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        page.call("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if view.dark { "dark" } else { "light" };
        page.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] }));
        let navigated = page.call("Page.navigate", json!({ "url": url }));
        assert!(navigated.get("errorText").is_none(), "{url}: {navigated}");
        page.wait_for("Page.loadEventFired");
        // The scripts have run on load, and their messages have arrived.
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))");
        page.assert_sound();
        page
    }

    /// Sends a command and waits for its answer; other messages that come meanwhile go to `events`.
    fn call(&mut self, session: Option<&str>, method: &str, parameters: Value, events: &mut Vec<Value>) -> Value {
        self.next_id += 1;
        let mut message = json!({ "id": self.next_id, "method": method, "params": parameters });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let sent = self.pipe.write_all(format!("{message}\0").as_bytes()).and_then(|()| self.pipe.flush());
        sent.unwrap_or_else(|error| panic!("the browser is gone ({error}): {}", self.log()));
        loop {
            let answer = self.receive();
            if answer["id"] == self.next_id {
                assert!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            events.push(answer);
        }
    }

    fn receive(&mut self) -> Value {
        self.messages
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("no answer from the browser ({error}): {}", self.log()))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.profile.path().join("stderr")).unwrap_or_default()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.pipe.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let patience = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An open page.
pub struct Page<'b> {
    browser: &'b mut Browser,
    session: String,
    url: String,
    events: Vec<Value>,
}

impl Page<'_> {
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.browser.call(Some(&self.session), method, parameters, &mut self.events)
    }

    fn wait_for(&mut self, event: &str) {
        while !self.events.iter().any(|seen| seen["method"] == event) {
            let message = self.browser.receive();
            self.events.push(message);
        }
    }

    /// Value of a JavaScript expression in the page; a promise's once it is kept.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{}: {expression}: {}", self.url, answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Number of elements that a CSS selector finds.
    pub fn count(&mut self, selector: &str) -> usize {
        self.evaluate(&format!("document.querySelectorAll({}).length", json!(selector))).as_u64().unwrap() as usize
    }

    /// Text of the elements that a selector finds, as a reader sees it.
    pub fn texts(&mut self, selector: &str) -> Vec<String> {
        let found = self.evaluate(&format!("[...document.querySelectorAll({})].map(e => e.textContent)", json!(selector)));
        found.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_string()).collect()
    }

    /// A computed style of the first element that a selector finds.
    pub fn style(&mut self, selector: &str, property: &str) -> String {
        let [selector, property] = [selector, property].map(|text| json!(text));
        let style = format!("getComputedStyle(document.querySelector({selector})).getPropertyValue({property})");
        self.evaluate(&style).as_str().unwrap().to_string()
    }

    /// The whole document, as it stands after scripts.
    pub fn html(&mut self) -> String {
        self.evaluate("document.documentElement.outerHTML").as_str().unwrap().to_string()
    }

    /// A picture of the whole page, as a PNG file.
    pub fn screenshot(&mut self) -> Vec<u8> {
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        base64(answer["data"].as_str().unwrap())
    }

    /// A picture of the first element that a selector finds.
    pub fn screenshot_of(&mut self, selector: &str) -> Vec<u8> {
        let place = format!(
            "(r => ({{ x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height, scale: 1 }}))(document.querySelector({}).getBoundingClientRect())",
            json!(selector)
        );
        let clip = self.evaluate(&place);
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true, "clip": clip }));
        base64(answer["data"].as_str().unwrap())
    }

    /// Fails if anything that is shown is wider than its box or sticks out of the window, or a chart's text out of its chart.
    pub fn assert_fits(&mut self) {
        let outside = r#"[...document.querySelectorAll("body *")].filter(e => {
            const r = e.getBoundingClientRect();
            if (!r.width || !r.height) return false;
            const svg = e.ownerSVGElement;
            if (svg) {
                const box = svg.getBoundingClientRect();
                return e.tagName === "text" && (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1);
            }
            if (r.left < -1 || r.right > document.documentElement.clientWidth + 1) return true;
            return getComputedStyle(e).display !== "inline" && e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1;
        }).map(e => `${e.tagName}.${e.getAttribute("class")}: ${e.textContent.slice(0, 60)}`).slice(0, 10)"#;
        let found = self.evaluate(outside);
        let width = self.evaluate("innerWidth");
        assert_eq!(found, json!([]), "{} at {width} px", self.url);
    }

    /// Fails on any problem in the page so far: console errors, exceptions, refused or failed requests, requests outside the page, and content
    /// that is wider than the page.
    pub fn assert_sound(&mut self) {
        let overflow = self.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");
        let problems: Vec<String> = self.events.iter().filter_map(|event| problem(event, &self.url)).collect();
        assert!(problems.is_empty(), "{}:\n{}", self.url, problems.join("\n"));
        assert_eq!(overflow.as_i64(), Some(0), "{}: the page is wider than its window", self.url);
    }
}

/// What is wrong with an event, if anything is.
fn problem(event: &Value, url: &str) -> Option<String> {
    let parameters = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(format!("exception: {}", parameters["exceptionDetails"])),
        "Runtime.consoleAPICalled" if ["error", "assert"].iter().any(|kind| parameters["type"] == *kind) => {
            Some(format!("console: {}", parameters["args"]))
        }
        "Log.entryAdded" if parameters["entry"]["level"] == "error" => Some(format!("log: {}", parameters["entry"]["text"])),
        "Network.requestWillBeSent" => {
            let asked = parameters["request"]["url"].as_str()?;
            (asked != url && !asked.starts_with("data:")).then(|| format!("the page asked for {asked}"))
        }
        _ => None,
    }
}

/// Bytes from base64 (RFC 4648, padded).
fn base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} is no letter of base64"),
    };
    let letters: Vec<u8> = text.bytes().filter(|&letter| letter != b'=').map(value).collect();
    let group = |letters: &[u8]| {
        let bits = letters.iter().fold(0u32, |bits, &letter| bits << 6 | u32::from(letter)) << (6 * (4 - letters.len()));
        bits.to_be_bytes()[1..letters.len()].to_vec()
    };
    letters.chunks(4).flat_map(group).collect()
}
