//! A request as data: what is sent, and whether it may be sent twice.

use super::documents::UploadFile;
use crate::error::ClientError;
use bytes::Bytes;
use reqwest::{Method, Url};
use serde::Serialize;

/// A request that can be sent to any endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Segments of the path, not yet percent-encoded.
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) body: Body,
    pub(crate) idempotency_key: Option<String>,
    /// Whether doing it twice leaves the same as doing it once.
    pub(crate) repeatable: bool,
    /// Whether it changes anything: what is then unknown after a lost answer.
    pub(crate) writes: bool,
    /// Whether the time limit of uploads counts.
    pub(crate) upload: bool,
}

/// What a call carries.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Empty,
    Json(Bytes),
    Ndjson(Bytes),
    Files(Vec<UploadFile>),
}

impl Call {
    /// A call that changes nothing.
    pub(crate) fn read(method: Method, path: &[&str]) -> Call {
        Call {
            method,
            path: path.iter().map(|segment| (*segment).to_owned()).collect(),
            query: Vec::new(),
            body: Body::Empty,
            idempotency_key: None,
            repeatable: true,
            writes: false,
            upload: false,
        }
    }

    /// A call that changes something, and is sent once only unless [`Call::repeatable`] or a key says otherwise.
    pub(crate) fn write(method: Method, path: &[&str]) -> Call {
        Call { repeatable: false, writes: true, ..Call::read(method, path) }
    }

    pub(crate) fn json<T: Serialize>(mut self, body: &T) -> Result<Call, ClientError> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| ClientError::Invalid(format!("the request cannot be written as JSON: {error}")))?;
        self.body = Body::Json(bytes.into());
        Ok(self)
    }

    pub(crate) fn body(mut self, body: Body) -> Call {
        self.body = body;
        self
    }

    pub(crate) fn query(mut self, query: Vec<(&'static str, String)>) -> Call {
        self.query.extend(query);
        self
    }

    /// With a key the node recognises a repetition, so the call may be sent again.
    pub(crate) fn idempotency_key(mut self, key: Option<String>) -> Call {
        self.repeatable |= key.is_some();
        self.idempotency_key = key;
        self
    }

    pub(crate) fn repeatable(mut self, repeatable: bool) -> Call {
        self.repeatable |= repeatable;
        self
    }

    pub(crate) fn upload(mut self) -> Call {
        self.upload = true;
        self
    }

    /// The address of this call at an endpoint.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a name or an id that cannot stand in an address.
    pub(crate) fn url(&self, endpoint: &Url) -> Result<Url, ClientError> {
        let mut url = endpoint.clone();
        {
            let mut segments =
                url.path_segments_mut().map_err(|()| ClientError::Invalid("the endpoint cannot have a path".to_owned()))?;
            for segment in &self.path {
                // Addresses are normalised: these would silently name another resource.
                if matches!(segment.as_str(), "" | "." | "..") {
                    return Err(ClientError::Invalid(format!("{segment:?} cannot be used as a name or an id in an address")));
                }
                segments.push(segment);
            }
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(path: &[&str], query: Vec<(&'static str, String)>) -> Result<String, ClientError> {
        let endpoint = Url::parse("http://h:1/").expect("an address");
        Call::read(Method::GET, path).query(query).url(&endpoint).map(|url| url.to_string())
    }

    #[test]
    fn ids_are_one_segment_whatever_they_contain() {
        let id = "sub/ä b?#%2F.md";
        let address = url(&["documents", id], vec![("cursor", "a&b=c".to_owned())]).expect("an ordinary id");
        assert_eq!(address, "http://h:1/documents/sub%2F%C3%A4%20b%3F%23%252F.md?cursor=a%26b%3Dc");
    }

    #[test]
    fn an_id_that_addresses_cannot_hold_is_refused() {
        for id in ["", ".", ".."] {
            assert!(matches!(url(&["documents", id], vec![]), Err(ClientError::Invalid(_))), "{id:?}");
        }
    }

    #[test]
    fn only_a_key_makes_a_write_repeatable() {
        assert!(!Call::write(Method::POST, &["a"]).idempotency_key(None).repeatable);
        assert!(Call::write(Method::POST, &["a"]).idempotency_key(Some("k".to_owned())).repeatable);
        assert!(Call::read(Method::POST, &["a"]).repeatable);
    }
}
