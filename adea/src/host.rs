//! The report on this machine: what `/proc` and the file system tell, and how the programs are.

mod machine;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use adea_ring::config::DiskConfig;
use adea_ring::host::{DiskLevel, HostReport, ProgramReport};
use adea_ring::software;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::doing::Doing;
use crate::host::machine::{Times, cpu_times, memory, process};
use crate::levers::Levers;

/// How often to look: a disk that fills at 100 MB/s is noticed half a gigabyte later, of which the limits leave twice.
const LOOK: Duration = Duration::from_secs(5);
/// The version of the engine is asked for with a report; one that hangs is not to hold that up.
const ENGINE_DEADLINE: Duration = Duration::from_secs(2);

/// Looks at the machine again and again, and puts what it sees on the board.
pub async fn watch(levers: Levers) {
    let mut looker = Looker::default();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let engine = match &levers.engine {
            None => None,
            // Asked anew each time, as the engine may be replaced under its containers.
            Some(engine) => Some(match timeout(ENGINE_DEADLINE, engine.version()).await {
                Ok(Ok(version)) => Ok(version),
                Ok(Err(err)) => Err(err.to_string()),
                Err(_) => Err(format!("Docker does not answer in {} s", ENGINE_DEADLINE.as_secs())),
            }),
        };
        let disk = levers.news.borrow().config.as_ref().map(|config| config.disk).unwrap_or_default();
        let doing = levers.doing.borrow().clone();
        let mut report = looker.look(levers.folder.root(), &doing, disk);
        report.runtime = match &engine {
            None => "process".to_owned(),
            Some(Ok(version)) => format!("docker {version}"),
            Some(Err(_)) => "docker".to_owned(),
        };
        report.image = levers.image.as_ref().map(|image| doing.software.image.as_ref().unwrap_or(image).clone());
        if let Some(Err(trouble)) = engine
            && !report.troubles.iter().any(|known| known.contains(&trouble))
        {
            report.troubles.insert(0, trouble);
        }
        levers.board.set_host(report);
    }
}

/// What has to be remembered from one look to the next.
#[derive(Debug, Default)]
struct Looker {
    machine: Option<Times>,
    /// The ticks of each process, and the machine's at that time.
    processes: BTreeMap<u32, u64>,
    level: DiskLevel,
}

impl Looker {
    fn look(&mut self, data: &Path, doing: &Doing, disk: DiskConfig) -> HostReport {
        let mut report = HostReport::default();
        let now = cpu_times();
        let machine_ticks = match (&now, &self.machine) {
            (Some(now), Some(before)) => now.total.saturating_sub(before.total),
            _ => 0,
        };
        report.cpus = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        if let Some(now) = &now {
            report.cpus = now.cores.max(1);
            if let Some(before) = &self.machine {
                report.cpu_percent = percent(now.busy.saturating_sub(before.busy), machine_ticks);
            }
        }
        let (total, available) = memory();
        (report.memory_bytes, report.memory_available_bytes) = (total, available);
        report.kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        self.look_at_disk(data, disk, &mut report);
        self.look_at_programs(doing, machine_ticks, &mut report);
        report.troubles.extend(doing.state.trouble.clone());
        for (program, state) in &doing.state.programs {
            if let (None, Some(end)) = (state.pid, &state.last_end) {
                report.troubles.push(format!("{program} does not run: {end}"));
            }
        }
        self.machine = now;
        report
    }

    fn look_at_disk(&mut self, data: &Path, disk: DiskConfig, report: &mut HostReport) {
        match rustix::fs::statvfs(data) {
            Ok(stat) => {
                report.disk_bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
                // What root alone may use is of no use to the programs, which are not root.
                report.disk_available_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
                self.level = disk.level(self.level, report.disk_bytes, report.disk_available_bytes);
            }
            Err(err) => report.troubles.push(format!("can't look at the disk of {}: {err}", data.display())),
        }
        report.disk = self.level;
        if self.level != DiskLevel::Roomy {
            let mib = report.disk_available_bytes >> 20;
            let so = if self.level == DiskLevel::Full { "takes no new data" } else { "takes no mastership" };
            report.troubles.push(format!(
                "the disk of {} has {mib} MiB left, so this pod {so}; make room, or change `disk` in the ring's configuration",
                data.display()
            ));
        }
    }

    fn look_at_programs(&mut self, doing: &Doing, machine_ticks: u64, report: &mut HostReport) {
        let mut seen = BTreeMap::new();
        let mut add = |pid: Option<u32>, mut program: ProgramReport| {
            if let Some((pid, now)) = pid.and_then(|pid| Some((pid, process(pid)?))) {
                program.memory_bytes = now.memory_bytes;
                if let Some(before) = self.processes.get(&pid) {
                    let ticks = now.ticks.saturating_sub(*before);
                    // The machine's ticks are those of all cores.
                    program.cpu_percent = percent(ticks * u64::from(report.cpus), machine_ticks);
                }
                seen.insert(pid, now.ticks);
            }
            report.programs.push(program);
        };
        let adea = ProgramReport {
            name: "adea".to_owned(),
            software: software::version().to_owned(),
            healthy: true,
            ..ProgramReport::default()
        };
        add(Some(std::process::id()), adea);
        for (program, state) in &doing.state.programs {
            let row = ProgramReport {
                name: program.name().to_owned(),
                software: state.version.clone().unwrap_or_default(),
                healthy: state.healthy,
                restarts: state.restarts,
                container: state.container.clone(),
                ..ProgramReport::default()
            };
            add(state.pid, row);
        }
        self.processes = seen;
    }
}

/// A share to a tenth, so that a machine that does nothing gives the same report again.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    (part as f64 / whole as f64 * 1_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::Looker;
    use crate::doing::Doing;
    use crate::plan::Program;
    use crate::state::ProgramState;
    use adea_ring::config::DiskConfig;
    use adea_ring::host::DiskLevel;

    fn doing() -> Doing {
        let mut doing = Doing::default();
        let state = ProgramState {
            pid: Some(std::process::id()),
            addr: None,
            software: None,
            version: Some("1.2.3".into()),
            container: Some("adea-pod-1-rean".into()),
            healthy: true,
            restarts: 2,
            last_end: None,
        };
        doing.state.programs.insert(Program::Rean, state.clone());
        let dead = ProgramState { pid: None, last_end: Some("exit status: 1".into()), ..state };
        doing.state.programs.insert(Program::Proxy, dead);
        doing
    }

    #[test]
    fn a_machine_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let mut looker = Looker::default();
        looker.look(dir.path(), &doing(), DiskConfig::default());
        // Something to see.
        let until = std::time::Instant::now() + std::time::Duration::from_millis(100);
        while std::time::Instant::now() < until {}
        let report = looker.look(dir.path(), &doing(), DiskConfig::default());
        assert!(report.cpus > 0 && report.memory_bytes > report.memory_available_bytes);
        assert!(report.memory_available_bytes > 0 && report.disk_bytes > report.disk_available_bytes);
        assert!((0.0..=100.0).contains(&report.cpu_percent), "{report:?}");
        assert!(!report.kernel.is_empty());
        let rean = report.programs.iter().find(|program| program.name == "rean").unwrap();
        assert!(rean.memory_bytes > 0 && rean.cpu_percent > 0.0, "{rean:?}");
        assert_eq!((rean.restarts, rean.software.as_str()), (2, "1.2.3"));
        assert_eq!(report.programs.len(), 3);
        assert!(report.troubles.iter().any(|trouble| trouble.contains("proxy does not run: exit status: 1")));
    }

    #[test]
    fn a_full_disk_is_a_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let low = DiskConfig { low_percent: 0.0, low_mib: 1 << 24, full_percent: 0.0, full_mib: 1 << 24 };
        let report = Looker::default().look(dir.path(), &Doing::default(), low);
        assert_eq!(report.disk, DiskLevel::Full);
        assert!(report.troubles[0].contains("takes no new data"), "{:?}", report.troubles);
    }
}
