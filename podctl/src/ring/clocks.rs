//! How far the clocks of pods are from this machine's, as the dates of their answers tell.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Method;
use http::header::DATE;
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::http::Peer;
use crate::moment::{now_ms, parse_iso};
use crate::ring::status::Pods;

/// A pod that takes longer is none to go by.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far the clock of a pod is ahead of this machine's, in milliseconds, to about a second; none if it tells no date. No
/// log-in is shown to it: whoever it is may answer this.
///
/// # Errors
/// When it does not answer.
pub async fn ahead_ms(peer: &Peer) -> anyhow::Result<Option<i64>> {
    let mut conn = peer.clone().unverified().connect().await?;
    let (asked, asked_ms) = (Instant::now(), now_ms());
    let response = conn.open(Method::GET, "/_up", "").await?;
    let took_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
    let date = response.headers().get(DATE).and_then(|date| date.to_str().ok()).and_then(parse_date);
    // Read to its end, so that the pod doesn't log a client that has hung up.
    let _ = response.into_body().collect().await;
    Ok(date.map(|date_ms| difference_ms(date_ms, asked_ms + took_ms / 2)))
}

/// How far the clocks of the ring's other pods are ahead of this machine's, on which `me` is; none if none of them tells.
pub async fn of_others(pods: &Pods, me: &str) -> Option<i64> {
    let others = pods.rows.iter().filter(|row| row.is_alive() && row.id != me);
    let peers = others.filter_map(|row| Peer::parse(&row.url()?).ok());
    let asked = peers.map(|peer| async move { timeout(PATIENCE, ahead_ms(&peer)).await.ok()?.ok()? });
    middle(join_all(asked).await.into_iter().flatten())
}

/// The one in the middle, so that a wrong clock among many doesn't count.
pub fn middle(ahead_ms: impl IntoIterator<Item = i64>) -> Option<i64> {
    let mut sorted: Vec<i64> = ahead_ms.into_iter().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// The header has whole seconds: on average the clock is half a second further.
fn difference_ms(date_ms: u64, here_ms: u64) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    signed(date_ms.saturating_add(500)).saturating_sub(signed(here_ms))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7), in milliseconds since 1970.
fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    parse_iso(&format!("{year}-{month:02}-{day}T{time}Z"))
}

#[cfg(test)]
mod tests {
    use super::{ahead_ms, difference_ms, middle, of_others, parse_date};
    use crate::http::Peer;
    use crate::moment::now_ms;
    use crate::ring::status::Pods;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A pod that answers everything in this way; its URL.
    async fn pod(head: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 4_096];
                let _ = stream.read(&mut asked).await;
                let _ =
                    stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}content-length: 0\r\n\r\n").as_bytes()).await;
            }
        });
        url
    }

    const OF_1994: &str = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

    #[test]
    fn dates_of_answers() {
        assert_eq!(parse_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000));
        for bad in ["", "06 Nov 1994 08:49:37 GMT", "Sun, 06 Zov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 CET"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
        assert_eq!((difference_ms(10_000, 10_400), difference_ms(0, 5_000)), (100, -4_500));
    }

    #[test]
    fn one_wrong_clock_among_many_does_not_count() {
        assert_eq!(middle([]), None);
        assert_eq!(middle([7]), Some(7));
        assert_eq!(middle([90_000, 3, 2]), Some(3));
    }

    #[tokio::test]
    async fn a_pod_tells_its_clock() {
        let ask = async |head| ahead_ms(&Peer::parse(&pod(head).await).unwrap()).await.unwrap();
        assert_eq!(ask("").await, None);
        assert_eq!(ask("date: today\r\n").await, None);
        let expected = difference_ms(784_111_777_000, now_ms());
        assert!(ask(OF_1994).await.is_some_and(|ahead_ms| ahead_ms.abs_diff(expected) < 60_000));
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(ahead_ms(&Peer::parse(&format!("http://{nobody}")).unwrap()).await.is_err());
    }

    #[tokio::test]
    async fn the_pod_of_this_machine_has_no_say() {
        let (early, silent) = (pod(OF_1994).await, pod("").await);
        let ring = |urls: &[(&str, &str)]| {
            let own = |(id, url): &(&str, &str)| json!({"_id": format!("pod:{id}"), "url": url});
            let seen = |(id, url): &(&str, &str)| json!({"_id": format!("pod:{id}"), "url": url, "alive": true});
            let (own, seen): (Vec<Value>, Vec<Value>) =
                (urls.iter().map(own).collect(), urls.iter().map(seen).collect());
            Pods::new(Some("me".into()), None, own, seen)
        };
        assert_eq!(of_others(&ring(&[("me", &early)]), "me").await, None);
        assert_eq!(of_others(&ring(&[("me", &early), ("other", &silent)]), "me").await, None);
        let told = of_others(&ring(&[("me", &silent), ("other", &early)]), "me").await;
        assert!(told.is_some_and(|ahead_ms| ahead_ms < -1_000_000_000), "{told:?}");
    }
}
