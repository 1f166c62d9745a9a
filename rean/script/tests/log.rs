//! What functions log comes out on the server's log, and not too much of it.

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rean_script::{Design, ScriptLimits, Scripts};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn log_lines_are_bounded() {
    let lines = Lines::default();
    tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).init();
    let scripts = Scripts::new(ScriptLimits::default());
    let filter = "function(doc) { log({a: 1}); log('half \\ud800'); log('x'.repeat(5000)); for (var n = 0; n < 1000; n++) log('line'); return true }";
    let design = Design::new(&serde_json::json!({ "filters": { "f": filter } }).to_string()).unwrap();
    for calls in 1..3 {
        assert_eq!(scripts.filter(&design, "f", vec!["{}".to_owned()], "{}"), Ok(vec![true]));
        let deadline = Instant::now() + Duration::from_secs(20);
        while lines.text().lines().count() < calls * 32 {
            assert!(Instant::now() < deadline, "{}", lines.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let text = lines.text();
    assert_eq!(text.lines().count(), 64);
    assert!(text.contains("{\"a\":1}") && text.contains("half \u{fffd}") && text.contains("rean_script::log"));
    assert!(text.lines().all(|line| line.len() < 1_200));
}
