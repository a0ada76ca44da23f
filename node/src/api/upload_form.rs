//! Uploads of files as a form (`multipart/form-data`).

use crate::api::body::Body;
use crate::api::json;
use crate::api::problem::Problem;
use multer::{Field, Multipart};
use ragged_client::{Format, NewDocument};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use warp::http::StatusCode;

/// Files of one form: every file costs a document in memory, so their number has a limit as in JSON.
const FILES_MAX: usize = 10_000;

/// Form with files. The name of a file becomes its document's id and title, its extension decides the format.
#[derive(ToSchema)]
#[allow(dead_code)] // describes the form; the fields are read one by one as they come
pub struct UploadForm {
    /// Files in UTF-8 whose names end in .txt, .md or .html; any field that has a file name is taken.
    #[schema(value_type = Vec<String>, format = Binary, min_items = 1, max_items = 10000)]
    file: Vec<Vec<u8>>,
    /// Metadata for every file of the form, a JSON object.
    #[schema(value_type = Option<String>, example = "{\"team\": \"storage\"}")]
    metadata: Option<String>,
    /// Id of the document, when the form has one file.
    #[schema(min_length = 1, max_length = 256)]
    id: Option<String>,
    /// Title of the document, when the form has one file.
    #[schema(max_length = 1024)]
    title: Option<String>,
}

/// Reads a form, as the documents that it stands for.
pub async fn read(body: Body, media_type: &mime::Mime, limit_bytes: usize) -> Result<Vec<NewDocument>, Problem> {
    let Some(boundary) = media_type.get_param(mime::BOUNDARY) else {
        return Err(malformed("the content-type names no boundary"));
    };
    let mut form = Multipart::new(body.into_stream(limit_bytes)?, boundary.as_str());
    let mut read = Form::default();
    while let Some(field) = form.next_field().await.map_err(form_problem)? {
        read.take(field).await?;
    }
    read.into_documents()
}

/// Bytes of the fields id and title, which the engine limits further.
const NAME_BYTES_MAX: usize = 1024;
/// Bytes of the field metadata.
const METADATA_BYTES_MAX: usize = 64 << 10;
/// Bytes of metadata that a form may make: every file gets the whole of it.
const METADATA_BYTES_IN_ALL_MAX: usize = 32 << 20;

#[derive(Default)]
struct Form {
    files: Vec<NewDocument>,
    metadata: Option<Map<String, Value>>,
    metadata_bytes: usize,
    id: Option<String>,
    title: Option<String>,
}

impl Form {
    async fn take(&mut self, field: Field<'_>) -> Result<(), Problem> {
        if let Some(file_name) = field.file_name() {
            let file_name = file_name.to_string();
            if self.files.len() == FILES_MAX {
                return Err(Problem::invalid("too_many_documents", format!("the form has more than {FILES_MAX} files")));
            }
            // Refused before its content is read.
            let format = format_of(&file_name)?;
            let text = text(field, &format!("file {file_name:?}")).await?;
            let text = text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text);
            let document = NewDocument { id: Some(file_name.clone()), title: Some(file_name), text, ..NewDocument::default() };
            self.files.push(NewDocument { format: Some(format), ..document });
            return Ok(());
        }
        let name = field.name().unwrap_or_default().to_string();
        let place = format!("field {name:?}");
        match name.as_str() {
            "metadata" => {
                let text = short_text(field, &place, METADATA_BYTES_MAX).await?;
                self.metadata_bytes = text.len();
                let parsed = json::parse(text.into_bytes()).await.map_err(|problem| problem.at("metadata"))?;
                set(&mut self.metadata, parsed, &name)
            }
            "id" => set(&mut self.id, short_text(field, &place, NAME_BYTES_MAX).await?, &name),
            "title" => set(&mut self.title, short_text(field, &place, NAME_BYTES_MAX).await?, &name),
            _ => {
                let detail = format!(
                    "{place} is not known; known are metadata, id and title, and every other field must be a file with its name"
                );
                Err(Problem::invalid("unknown_field", detail))
            }
        }
    }

    fn into_documents(mut self) -> Result<Vec<NewDocument>, Problem> {
        if self.files.is_empty() {
            return Err(Problem::invalid("no_files", "the form has no file: send at least one field with a file name"));
        }
        if self.metadata_bytes.saturating_mul(self.files.len()) > METADATA_BYTES_IN_ALL_MAX {
            let detail = format!(
                "metadata of {} bytes for each of {} files is more than {} MiB in all",
                self.metadata_bytes,
                self.files.len(),
                METADATA_BYTES_IN_ALL_MAX >> 20
            );
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "metadata_too_long", detail));
        }
        let names_one = self.id.is_some() || self.title.is_some();
        if names_one && self.files.len() != 1 {
            let detail = format!("id and title can be given with one file only, and the form has {}", self.files.len());
            return Err(Problem::invalid("ambiguous_field", detail));
        }
        for document in &mut self.files {
            document.metadata.clone_from(&self.metadata);
            document.id = self.id.take().or(document.id.take());
            document.title = self.title.take().or(document.title.take());
        }
        Ok(self.files)
    }
}

fn set<T>(place: &mut Option<T>, value: T, name: &str) -> Result<(), Problem> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Problem::invalid("duplicate_field", format!("field {name:?} is given more than once"))),
    }
}

fn format_of(file_name: &str) -> Result<Format, Problem> {
    let extension = file_name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    match extension.as_deref() {
        Some("txt" | "text") => Ok(Format::Plain),
        Some("md" | "markdown") => Ok(Format::Markdown),
        Some("html" | "htm") => Ok(Format::Html),
        _ => {
            let detail = format!("file {file_name:?} is of a kind that is not read; files may end in .txt, .md or .html");
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_file_type", detail))
        }
    }
}

async fn text(field: Field<'_>, place: &str) -> Result<String, Problem> {
    let bytes = field.bytes().await.map_err(form_problem)?;
    utf8(bytes.into(), place)
}

fn utf8(bytes: Vec<u8>, place: &str) -> Result<String, Problem> {
    String::from_utf8(bytes).map_err(|error| {
        let detail = format!("{place} is not valid UTF-8 at byte {}", error.utf8_error().valid_up_to());
        Problem::invalid("invalid_utf8", detail)
    })
}

/// A field that is not a file; refused as soon as it is too long.
async fn short_text(mut field: Field<'_>, place: &str, limit_bytes: usize) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    while let Some(part) = field.chunk().await.map_err(form_problem)? {
        if bytes.len() + part.len() > limit_bytes {
            let detail = format!("{place} has more than {limit_bytes} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "field_too_long", detail));
        }
        bytes.extend_from_slice(&part);
    }
    utf8(bytes, place)
}

fn form_problem(error: multer::Error) -> Problem {
    match error {
        // What went wrong below the form (length, time) was a problem already.
        multer::Error::StreamReadFailed(cause) => match cause.downcast::<Problem>() {
            Ok(problem) => *problem,
            Err(cause) => malformed(&cause.to_string()),
        },
        other => malformed(&other.to_string()),
    }
}

fn malformed(detail: &str) -> Problem {
    Problem::invalid("malformed_multipart", format!("the form cannot be read: {detail}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    async fn form(parts: &[(&str, &[u8])]) -> Result<Vec<NewDocument>, Problem> {
        let mut whole = Vec::new();
        for (disposition, content) in parts {
            whole.extend_from_slice(format!("--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n").as_bytes());
            whole.extend_from_slice(content);
            whole.extend_from_slice(b"\r\n");
        }
        whole.extend_from_slice(b"--b--\r\n");
        raw(whole, "multipart/form-data; boundary=b").await
    }

    async fn raw(bytes: Vec<u8>, media_type: &str) -> Result<Vec<NewDocument>, Problem> {
        read(Body::of(vec![Bytes::from(bytes)]), &media_type.parse().unwrap(), 1000).await
    }

    #[tokio::test]
    async fn files_become_documents() {
        let documents = form(&[
            (r#"name="file"; filename="a.md""#, b"\xef\xbb\xbf# A"),
            (r#"name="metadata""#, br#"{"team": 1}"#),
            (r#"name="file"; filename="b.HTM""#, b"<p>b"),
        ])
        .await
        .unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].id.as_deref(), Some("a.md"));
        assert_eq!(documents[0].text, "# A");
        assert_eq!(documents[0].format, Some(Format::Markdown));
        assert_eq!(documents[1].format, Some(Format::Html));
        assert_eq!(documents[1].metadata.as_ref().unwrap()["team"], 1);
    }

    #[tokio::test]
    async fn one_file_can_be_named() {
        let file: (&str, &[u8]) = (r#"name="file"; filename="a.txt""#, b"a");
        let documents = form(&[file, (r#"name="id""#, b"x"), (r#"name="title""#, b"The X")]).await.unwrap();
        assert_eq!((documents[0].id.as_deref(), documents[0].title.as_deref()), (Some("x"), Some("The X")));
        assert_eq!(form(&[file, file, (r#"name="id""#, b"x")]).await.unwrap_err().code, "ambiguous_field");
    }

    #[tokio::test]
    async fn wrong_forms_say_what_is_wrong() {
        let refusal = async |parts: &[(&str, &[u8])]| form(parts).await.unwrap_err();
        let pdf = refusal(&[(r#"name="file"; filename="a.pdf""#, b"%PDF")]).await;
        assert_eq!((pdf.status.as_u16(), pdf.code), (415, "unsupported_file_type"));
        let binary = refusal(&[(r#"name="file"; filename="a.txt""#, b"ab\xff")]).await;
        assert_eq!(binary.code, "invalid_utf8");
        assert!(binary.detail.contains("a.txt") && binary.detail.contains("byte 2"), "{}", binary.detail);
        assert_eq!(refusal(&[(r#"name="metadata""#, b"{}")]).await.code, "no_files");
        assert_eq!(refusal(&[(r#"name="metadata""#, b"[]")]).await.code, "invalid_type");
        assert_eq!(refusal(&[(r#"name="colour""#, b"red")]).await.code, "unknown_field");
        assert_eq!(refusal(&[(r#"name="file"; filename="a.txt""#, &[b'a'; 2000])]).await.code, "body_too_large");
        assert_eq!(
            raw(b"--b\r\nContent-Dis".to_vec(), "multipart/form-data; boundary=b").await.unwrap_err().code,
            "malformed_multipart"
        );
        assert_eq!(raw(Vec::new(), "multipart/form-data").await.unwrap_err().code, "malformed_multipart");
    }
}
