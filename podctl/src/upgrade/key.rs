//! The key that orders are signed with: found for an order, shown, replaced.

use std::path::{Path, PathBuf};
use std::time::Duration;

use adea::order_key;
use adea::ring_file::RingFile;
use adea_ring::clock::DEFAULT_MAX_DRIFT_MS;
use adea_ring::upgrade::{OrderKey, OrderTrust};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::command::upgrade::KeyArgs;
use crate::moment::now_ms;
use crate::ring::clocks;
use crate::ring::status::Pods;
use crate::ring::target::{TargetArgs, ring_file_of};

/// How long the other pods' clocks are asked for: a few that don't answer take five seconds, as all are asked at once.
const CLOCK_DEADLINE: Duration = Duration::from_secs(15);

/// The private key for an order: the given one, else that beside the ring file.
///
/// # Errors
/// When there is none here, or it isn't the one whose orders the pods follow.
pub fn find(given: Option<&Path>, ring_file: &Path, file: &RingFile) -> anyhow::Result<OrderKey> {
    let Some(trust) = file.order_trust() else {
        bail!(
            "this ring has no key for orders yet, as an earlier version made it, so no pod follows one: `podctl upgrade key \
             --replace` on the machine that is to order upgrades makes one, and says what to do on the others"
        );
    };
    let path = given.map_or_else(|| order_key::beside(ring_file), Path::to_path_buf);
    let Some(key) = order_key::load(&path)? else {
        bail!(
            "there is no {}: an order is signed with the ring's key for orders, of which this machine has only the public \
             half ({}). Do this on the machine that has order.key{}, or bring a copy of that file: --order-key FILE. If it \
             is lost: podctl upgrade key --replace",
            path.display(),
            trust.key.fingerprint(),
            made_at(&trust),
        );
    };
    if key.public() != trust.key {
        bail!(
            "{} is the key {}, and this ring follows the orders of {}{}: bring that one (--order-key FILE)",
            path.display(),
            key.public().fingerprint(),
            trust.key.fingerprint(),
            made_at(&trust),
        );
    }
    Ok(key)
}

fn made_at(trust: &OrderTrust) -> String {
    trust.at.as_ref().map(|pod| format!(" (it was made on the machine of {pod})")).unwrap_or_default()
}

/// Shows the key that this machine goes by, or gives it another.
pub async fn run(args: &KeyArgs) -> anyhow::Result<()> {
    let path = ring_file_of(args.ring_file.as_deref(), args.data.as_deref(), &args.config)?;
    let mut file = RingFile::load(&path)?
        .with_context(|| format!("there is no {}: do this on a pod's machine", path.display()))?;
    let key_path = order_key::beside(&path);
    if args.replace {
        let key = OrderKey::random();
        let trust =
            OrderTrust { key: key.public(), at: Some(file.pod_id.parse().context("the ring file's `pod_id`")?) };
        // In this order no pod ever follows a key that nobody has; if the other can't be written, this is done again.
        order_key::save(&key_path, &key)?;
        file.trust_new_key(&trust);
        file.save(&path)?;
    } else if let Some(key) = args.trust {
        let known = file.order_trust().filter(|trust| trust.key == key);
        // The same key again lets a machine off that has waited for a time which a wrong clock told.
        if known.is_none() || file.waits_for_orders(now_ms()) {
            if let Some(why) = check_clock(args, &path, &file).await? {
                // Of a clock that is behind, older orders would count again.
                if known.is_some() && !args.force {
                    bail!(
                        "this machine's clock could not be compared with those of the other pods: {why}\n\
                         See that it is right (timedatectl) and that a pod answers, then do this again; or add --force if \
                         you know that the clock is right"
                    );
                }
                eprintln!(
                    "warning: this machine's clock could not be compared with those of the other pods: {why}\n\
                     Orders count here from now on by it: see that it is right (timedatectl), else do this again when it is"
                );
            }
            let at = args.at.clone().or_else(|| known.and_then(|trust| trust.at));
            file.trust_orders(&OrderTrust { key, at }, now_ms());
            file.save(&path)?;
        }
    }
    let shown = Shown::new(&file, key_path)?;
    if args.json {
        println!("{}", shown.json());
    } else {
        print!("{}", shown.text(args.replace));
    }
    Ok(())
}

/// Whether this machine's clock is as those of the other pods, since orders are to count from now on by it. Gives why that
/// can't be told: then whoever does this has to see to it, as a key that was stolen has to go also while no pod answers.
async fn check_clock(args: &KeyArgs, ring_file: &Path, file: &RingFile) -> anyhow::Result<Option<String>> {
    let target = TargetArgs::of_machine(args.data.clone(), args.config.clone());
    let asking = async {
        let (mut conn, ..) = target.ring(Some(ring_file)).await?;
        others_ahead_ms(&Pods::read(&mut conn).await?, &file.pod_id).await
    };
    Ok(match timeout(CLOCK_DEADLINE, asking).await {
        Ok(Ok(ahead_ms)) => {
            judge(ahead_ms, args.force)?;
            None
        }
        Ok(Err(err)) => Some(format!("{err:#}")),
        Err(_) => Some(format!("no answer in {} s", CLOCK_DEADLINE.as_secs())),
    })
}

/// How far the other pods' clocks are ahead; none when there is no other pod.
///
/// # Errors
/// When none of them tells its time.
async fn others_ahead_ms(pods: &Pods, me: &str) -> anyhow::Result<Option<i64>> {
    let ahead_ms = clocks::of_others(pods, me).await;
    if ahead_ms.is_none() && pods.rows.iter().any(|row| row.id != me && !row.has_left()) {
        bail!("none of them told its time");
    }
    Ok(ahead_ms)
}

/// Whether a clock is right that the other pods' are so far ahead of.
fn judge(ahead_ms: Option<i64>, force: bool) -> anyhow::Result<()> {
    let ahead_ms = ahead_ms.unwrap_or(0);
    if force || ahead_ms.unsigned_abs() <= DEFAULT_MAX_DRIFT_MS {
        return Ok(());
    }
    let (side, what) = if ahead_ms < 0 {
        ("ahead of", "for so long it would refuse those of machines whose clocks are right")
    } else {
        ("behind", "older ones would count, too, which somebody may have put back")
    };
    bail!(
        "this machine's clock is {} s {side} those of the other pods, and by it orders are to count from now on: {what}. Nothing was \
         changed. Set the clock (timedatectl set-ntp true) and do this again; if it is the other pods' that are wrong: --force",
        ahead_ms.unsigned_abs() / 1_000
    )
}

/// What a machine knows of the key.
struct Shown {
    /// Whether no order counts yet, by a time that a wrong clock told.
    waits: bool,
    trust: Option<OrderTrust>,
    path: PathBuf,
    /// The private key that lies here.
    private: Option<OrderKey>,
}

impl Shown {
    fn new(file: &RingFile, path: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            waits: file.waits_for_orders(now_ms()),
            trust: file.order_trust(),
            private: order_key::load(&path)?,
            path,
        })
    }

    /// Whether orders can be signed here.
    fn is_here(&self) -> bool {
        self.private.as_ref().map(OrderKey::public) == self.trust.as_ref().map(|trust| trust.key)
            && self.trust.is_some()
    }

    fn json(&self) -> Value {
        json!({
            "key": self.trust.as_ref().map(|trust| trust.key),
            "fingerprint": self.trust.as_ref().map(|trust| trust.key.fingerprint().to_string()),
            "made_at": self.trust.as_ref().and_then(|trust| trust.at.as_ref()),
            "private": self.is_here().then_some(&self.path),
            "waits": self.waits,
        })
    }

    fn text(&self, is_new: bool) -> String {
        let Some(trust) = &self.trust else {
            return "this machine knows no key for orders, so its pod follows none: an earlier version made the ring.\nIf another \
                    machine of the ring knows one, `podctl upgrade key` there says what to do here; else make one, on the\n\
                    machine that is to order upgrades: podctl upgrade key --replace\n"
                .to_owned();
        };
        let mut text =
            format!("this machine's pod follows orders that are signed with\n  {}\n", trust.key.fingerprint());
        if self.waits {
            text += &format!(
                "No order counts yet: the time since which they do is yet to come, as a clock was wrong when it was noted.\n\
                 Set this machine's clock (timedatectl set-ntp true), then:\n  podctl upgrade key --trust {}\n",
                trust.key
            );
        }
        let path = self.path.display();
        if self.is_here() {
            text += &format!(
                "The private half is here: {path}. Whoever has it can put programs on all machines of the ring; for a copy,\n\
                 treat it like the ring's secret. No other machine needs it.\n"
            );
        } else {
            let at = trust.at.as_ref().map_or_else(String::new, |pod| format!("; it was made on the machine of {pod}"));
            text += &format!("The private half is not here{at}. If it is lost: podctl upgrade key --replace\n");
            if self.private.is_some() {
                text += &format!("{path} is another key, which counts no more here: delete it.\n");
            }
        }
        let at = trust.at.as_ref().map(|pod| format!(" --at {pod}")).unwrap_or_default();
        let before = if is_new { "No other machine knows it yet. " } else { "" };
        text + &format!(
            "{before}On machines of the ring that know another key or none:\n  podctl upgrade key --trust {}{at}\n",
            trust.key
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{find, judge, others_ahead_ms};
    use crate::ring::status::Pods;
    use adea::order_key;
    use adea::ring_file::{Admin, RingFile};
    use adea_ring::upgrade::{OrderKey, OrderTrust};
    use serde_json::json;

    #[test]
    fn an_order_needs_the_key_that_the_pods_follow() {
        let dir = tempfile::tempdir().unwrap();
        let ring_file = dir.path().join("ring.json");
        let mut file = RingFile::new("pod-b".into(), Admin { name: "a".into(), password_hash: "h".into() });
        let why = |file: &RingFile| find(None, &ring_file, file).unwrap_err().to_string();
        assert!(why(&file).contains("--replace"), "{}", why(&file));
        let key = OrderKey::random();
        file.trust_orders(&OrderTrust { key: key.public(), at: Some("pod-a".parse().unwrap()) }, 1);
        assert!(why(&file).contains("machine of pod-a") && why(&file).contains("--order-key"), "{}", why(&file));
        let beside = order_key::beside(&ring_file);
        order_key::save(&beside, &OrderKey::random()).unwrap();
        assert!(why(&file).contains("is the key"), "{}", why(&file));
        let brought = dir.path().join("brought");
        order_key::save(&brought, &key).unwrap();
        assert_eq!(find(Some(&brought), &ring_file, &file).unwrap().public(), key.public());
        order_key::save(&beside, &key).unwrap();
        assert_eq!(find(None, &ring_file, &file).unwrap().public(), key.public());
    }

    #[tokio::test]
    async fn a_clock_that_no_other_pod_confirms_is_not_taken_for_a_right_one() {
        let ring = |other: Option<(bool, bool)>| {
            let mut own = vec![json!({"_id": "pod:me"})];
            let mut seen = vec![json!({"_id": "pod:me", "alive": true})];
            if let Some((is_seen, alive)) = other {
                own.push(json!({"_id": "pod:other"}));
                seen.extend(is_seen.then(|| json!({"_id": "pod:other", "alive": alive})));
            }
            Pods::new(Some("me".to_owned()), None, own, seen)
        };
        assert_eq!(others_ahead_ms(&ring(None), "me").await.unwrap(), None, "there is nobody to ask");
        // It has no address, or is away.
        for alive in [true, false] {
            let why = others_ahead_ms(&ring(Some((true, alive))), "me").await.unwrap_err().to_string();
            assert!(why.contains("told its time"), "{alive}: {why}");
        }
        assert_eq!(others_ahead_ms(&ring(Some((false, false))), "me").await.unwrap(), None, "it has left");
    }

    #[test]
    fn a_clock_that_is_off_tells_nobody_since_when_orders_count() {
        for ahead_ms in [None, Some(0), Some(60_000), Some(-60_000)] {
            assert!(judge(ahead_ms, false).is_ok(), "{ahead_ms:?}");
        }
        for (ahead_ms, side) in [(-3_600_000, "3600 s ahead of"), (60_001, "60 s behind"), (i64::MIN, "ahead of")] {
            let why = judge(Some(ahead_ms), false).unwrap_err().to_string();
            assert!(why.contains(side) && why.contains("timedatectl"), "{why}");
            assert!(judge(Some(ahead_ms), true).is_ok());
        }
    }
}
