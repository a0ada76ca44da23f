//! Where the node's memory is.

use crate::api::body_room::BodyRoom;
use crate::api::problem::Problem;
use crate::api::query::Query;
use crate::api::routes::Answer;
use crate::api::{Call, json};
use crate::memory::{self, FileKind};
use ragged_actors::{GpuUse, PartMemory, ProcessMemory, Session};
use ragged_client::{GpuMemory, MappedFiles, MemoryPart, MemoryReport};

/// `GET /api/v1/memory`.
#[utoipa::path(get, path = "/api/v1/memory", tag = "operation", operation_id = "memory",
    summary = "Memory", description = "Where the memory of the node is that answers.",
    responses((status = 200, description = "Where it is", body = MemoryReport)))]
pub async fn memory(call: Call, _session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let engine = call.api.engine()?;
    let (parts, budget_bytes, given_back_bytes) = (engine.memory(), engine.memory_budget() as u64, engine.memory_given_back());
    let files = tokio::task::spawn_blocking(memory::of_mapped_files).await.map_err(unknown)?.map_err(unknown)?;
    let process = ProcessMemory::current().map_err(unknown)?;
    json::ok(&MemoryReport {
        budget_bytes,
        given_back_bytes,
        resident_bytes: process.resident,
        anonymous_bytes: process.anonymous,
        mapped_bytes: process.mapped,
        allocated_bytes: memory::allocated().map_err(unknown)?,
        parts: parts.into_iter().map(part).chain([bodies(&call.api.body_room)]).collect(),
        files: files.into_iter().map(mapped_files).collect(),
        gpus: engine.gpu_memory().into_iter().map(gpu).collect(),
    })
}

fn part(memory: PartMemory) -> MemoryPart {
    let limit_bytes = memory.limit_bytes.map(|bytes| bytes as u64);
    MemoryPart { part: memory.part.to_owned(), bytes: memory.bytes as u64, limit_bytes }
}

fn bodies(room: &BodyRoom) -> MemoryPart {
    MemoryPart { part: "bodies".to_owned(), bytes: room.bytes() as u64, limit_bytes: Some(room.bytes_max() as u64) }
}

fn mapped_files((kind, bytes): (FileKind, u64)) -> MappedFiles {
    MappedFiles { kind: kind.name().to_owned(), bytes }
}

fn gpu(memory: GpuUse) -> GpuMemory {
    let GpuUse { gpu, name, total_bytes, used_bytes, encoder_bytes, rows_bytes, rows_limit_bytes } = memory;
    GpuMemory { gpu, name, total_bytes, used_bytes, encoder_bytes, rows_bytes, rows_limit_bytes }
}

fn unknown(fault: impl std::fmt::Display) -> Problem {
    Problem::internal(format!("the system does not say what memory the node has: {fault}"))
}
