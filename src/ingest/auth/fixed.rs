//! For tests of the server's other rules: answers from a table. The real API server is asked in the cluster tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// Tokens by name: `token-<name>` is the ServiceAccount `shop/<name>`; it may publish `lead.*` types in `shop`.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) away: Arc<AtomicBool>,
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Table {
    fn answer<T>(&self, answer: T) -> Result<T, ReviewError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(ReviewError::NoStatus);
        }
        Ok(answer)
    }

    pub(super) fn token(&self, token: &str) -> Result<Option<Arc<Identity>>, ReviewError> {
        let name = token.split('.').next().unwrap_or_default().strip_prefix("token-");
        let user = name.map(|name| UserInfo {
            username: Some(format!("system:serviceaccount:shop:{name}")),
            ..UserInfo::default()
        });
        self.answer(user.and_then(|user| identity(user, token)).map(Arc::new))
    }

    pub(super) fn access(&self, username: &str, namespace: &str, rule: Rule<'_>) -> Result<bool, ReviewError> {
        let allowed = username.starts_with("system:serviceaccount:shop:");
        self.answer(allowed && namespace == "shop" && rule.name.is_some_and(|name| name.starts_with("lead.")))
    }
}

impl Auth {
    pub(crate) fn table(table: Table) -> Auth {
        Auth::over(Reviewer::Table(table), vec![DEFAULT_AUDIENCE.to_owned()])
    }
}

fn headers(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
}

#[tokio::test]
async fn only_a_bearer_token_is_looked_at() {
    let auth = Auth::table(Table::default());
    for bad in ["Basic dXNlcg==", "Bearer", "Bearer ", "token-a", "Bearer  "] {
        let answer = auth.authenticate(&headers(bad), UnixMillis(0)).await;
        assert_eq!(answer.unwrap_err(), AuthError::Missing, "{bad}");
    }
    let mut twice = headers("Bearer token-a");
    twice.append(AUTHORIZATION, "Bearer token-b".parse().unwrap());
    assert_eq!(
        auth.authenticate(&twice, UnixMillis(0)).await.unwrap_err(),
        AuthError::Missing
    );
    let (identity, cached) = auth
        .authenticate(&headers("bearer token-a"), UnixMillis(0))
        .await
        .unwrap();
    assert_eq!((identity.service_account(), cached), (Some(("shop", "a")), false));
}

#[tokio::test(start_paused = true)]
async fn a_token_counts_for_nothing_past_its_exp_also_while_it_is_cached() {
    let table = Table::default();
    let away = table.away.clone();
    let auth = Auth::table(table);
    let claims = URL_SAFE_NO_PAD.encode(r#"{"exp":1795000000,"sub":"x"}"#);
    let headers = headers(&format!("Bearer token-a.{claims}.sig"));
    let before = UnixMillis(1_794_999_999_999);
    assert!(auth.authenticate(&headers, before).await.is_ok());
    away.store(true, Ordering::SeqCst);
    tokio::time::advance(cache::FRESH).await;
    assert!(
        auth.authenticate(&headers, before).await.is_ok(),
        "stale while the API server is away"
    );
    let after = UnixMillis(1_795_000_000_000);
    assert_eq!(
        auth.authenticate(&headers, after).await.unwrap_err(),
        AuthError::Refused
    );
}

#[tokio::test]
async fn an_api_server_that_is_away_is_not_a_refusal() {
    let table = Table::default();
    table.away.store(true, Ordering::SeqCst);
    let auth = Auth::table(table);
    let answer = auth.authenticate(&headers("Bearer nonsense"), UnixMillis(0)).await;
    assert_eq!(answer.unwrap_err(), AuthError::Unavailable);
}
