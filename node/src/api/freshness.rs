//! How fresh an answer must be, as a request says it: `consistency`, and the token of a write.

use crate::api::problem::Problem;
use crate::api::query::Query;
use ragged_actors::{Freshness, WriteToken};
use ragged_client::Consistency;

/// What a body says.
pub fn freshness(consistency: Option<Consistency>, token: Option<String>) -> Result<Freshness, Problem> {
    // Read even where it decides nothing: a wrong token is a mistake in the client.
    let token = token.map(|text| WriteToken::parse(&text)).transpose()?;
    match (consistency, token) {
        (None | Some(Consistency::Session), Some(token)) => Ok(Freshness::Session(token)),
        (Some(Consistency::Session), None) => {
            Err(Problem::invalid("missing_token", "consistency session needs the token of the write that must be seen"))
        }
        (Some(Consistency::Eventual), Some(_)) => Err(Problem::invalid(
            "contradicting_consistency",
            "a token asks for consistency session, but consistency says eventual",
        )),
        // Everything acknowledged before the request includes the token's write.
        (Some(Consistency::Strong), _) => Ok(Freshness::Strong),
        (None | Some(Consistency::Eventual), None) => Ok(Freshness::Eventual),
    }
}

/// What a query string says.
pub fn of_query(query: &mut Query) -> Result<Freshness, Problem> {
    let consistency = match query.text("consistency").as_deref() {
        None => None,
        Some("eventual") => Some(Consistency::Eventual),
        Some("session") => Some(Consistency::Session),
        Some("strong") => Some(Consistency::Strong),
        Some(other) => {
            let detail = format!("parameter consistency is {other:?}, but must be eventual, session or strong");
            return Err(Problem::invalid("invalid_parameter", detail));
        }
    };
    freshness(consistency, query.text("token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> String {
        WriteToken::default().reveal().unwrap()
    }

    #[test]
    fn tokens_and_consistency_agree() {
        assert!(matches!(freshness(None, None), Ok(Freshness::Eventual)));
        assert!(matches!(freshness(None, Some(token())), Ok(Freshness::Session(_))));
        assert!(matches!(freshness(Some(Consistency::Strong), Some(token())), Ok(Freshness::Strong)));
        assert_eq!(freshness(Some(Consistency::Session), None).err().unwrap().code, "missing_token");
        assert_eq!(freshness(Some(Consistency::Eventual), Some(token())).err().unwrap().code, "contradicting_consistency");
        assert_eq!(freshness(Some(Consistency::Strong), Some("t".to_string())).err().unwrap().code, "invalid_token");
    }

    #[test]
    fn a_query_string_says_the_same() {
        let of = |raw: &str| of_query(&mut Query::parse(raw).unwrap());
        assert!(matches!(of(""), Ok(Freshness::Eventual)));
        assert!(matches!(of("consistency=strong"), Ok(Freshness::Strong)));
        assert!(matches!(of(&format!("token={}", token())), Ok(Freshness::Session(_))));
        assert_eq!(of("consistency=stale").err().unwrap().code, "invalid_parameter");
    }
}
