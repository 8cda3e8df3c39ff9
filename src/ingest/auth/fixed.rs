//! For tests of the server's other rules: answers from a table. The real API server is asked in the cluster tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// Tokens by name: `token-<name>` is the ServiceAccount `shop/<name>`; it may publish `lead.*` types in `shop`. What is asked
/// about a token `silent-<name>`, or about a ServiceAccount of the namespace `silent`, is never answered.
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

    pub(super) async fn token(&self, token: &str) -> Result<Option<Arc<Identity>>, ReviewError> {
        if token.starts_with("silent-") {
            return std::future::pending().await;
        }
        let name = token.split('.').next().unwrap_or_default().strip_prefix("token-");
        let user = name.map(|name| UserInfo {
            username: Some(format!("system:serviceaccount:shop:{name}")),
            ..UserInfo::default()
        });
        self.answer(user.and_then(|user| identity(user, token)).map(Arc::new))
    }

    pub(super) async fn access(&self, username: &str, namespace: &str, rule: Rule<'_>) -> Result<bool, ReviewError> {
        if username.starts_with("system:serviceaccount:silent:") {
            return std::future::pending().await;
        }
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

/// The ServiceAccount `a` of a namespace.
fn producer_of(namespace: &str) -> Identity {
    let user = UserInfo {
        username: Some(format!("system:serviceaccount:{namespace}:a")),
        ..UserInfo::default()
    };
    identity(user, "token").unwrap()
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
    away.store(false, Ordering::SeqCst);
    tokio::time::advance(cache::FRESH).await;
    assert!(
        auth.authenticate(&headers, after).await.is_ok(),
        "who says now that it is valid has looked at its end"
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

#[tokio::test(start_paused = true)]
async fn one_namespace_with_many_types_leaves_questions_to_others() {
    let auth = Auth::table(Table::default());
    let (loud, quiet) = (producer_of("silent"), producer_of("shop"));
    let types: Vec<String> = (0..40).map(|n| format!("lead.t{n}")).collect();
    let asks = types.iter().map(|of| auth.may(&loud, "shop", Rule::publish(of)));
    let never = futures::future::join_all(asks);
    let allowed = auth.may(&quiet, "shop", Rule::publish("lead.won"));
    // The loud one's questions are all put before the quiet one's.
    tokio::select! {
        biased;
        _ = never => panic!("none of them is answered"),
        answer = allowed => assert_eq!(answer, Ok(true)),
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_with_made_up_tokens_leave_questions_to_producers() {
    let auth = Auth::table(Table::default());
    let producer = producer_of("shop");
    let made_up: Vec<HeaderMap> = (0..40).map(|n| headers(&format!("Bearer silent-{n}"))).collect();
    let asks = made_up.iter().map(|of| auth.authenticate(of, UnixMillis(0)));
    let never = futures::future::join_all(asks);
    let allowed = auth.may(&producer, "shop", Rule::publish("lead.won"));
    tokio::select! {
        biased;
        _ = never => panic!("none of them is answered"),
        answer = allowed => assert_eq!(answer, Ok(true)),
    }
}
