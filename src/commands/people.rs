//! The lists for people: tables on a terminal, JSON elsewhere.

use std::process::ExitCode;

use serde::Serialize;

use cistern::domain::size;
use cistern::peer::Client;
use cistern::proto::internal::{self, DescribeRequest, DescribeResponse};

use super::{Done, Output, PeopleArgs};

/// Asks the server on this machine.
pub fn ask(args: &PeopleArgs, request: DescribeRequest) -> Result<DescribeResponse, super::server::Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { Client::connect(&args.endpoint).await?.describe(request).await })?;
    Ok(answer)
}

/// `cistern volume keep`
pub fn keep(args: &PeopleArgs, id: String) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Client::connect(&args.endpoint).await?.keep(id).await })?;
    Ok(ExitCode::SUCCESS)
}

/// A list, as a table or as JSON.
fn print<T: Serialize>(args: &PeopleArgs, header: &[&str], entries: &[T], row: impl Fn(&T) -> Vec<String>) -> Done {
    match args.output() {
        Output::Json => println!("{}", serde_json::to_string_pretty(entries)?),
        Output::Table => {
            let header = header.iter().map(|name| (*name).to_owned()).collect();
            let rows: Vec<Vec<String>> = std::iter::once(header).chain(entries.iter().map(row)).collect();
            print!("{}", table(&rows));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Rows in columns as wide as their widest cell. Names may hold anything: a terminal is told nothing by them.
fn table(rows: &[Vec<String>]) -> String {
    let shown = |cell: &String| cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(shown).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let cell = |row: &Vec<String>, column| row.get(column).map_or(0, |cell: &String| cell.chars().count());
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| cell(row, column)).max().unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolEntry {
    name: String,
    host: String,
    medium: String,
    share: String,
    place: String,
    store: String,
    total_bytes: u64,
    free_bytes: u64,
    promised_bytes: u64,
    available_bytes: u64,
    down: String,
    troubles: Vec<String>,
}

/// `cistern pool ls`
pub fn pools(args: &PeopleArgs) -> Done {
    let entry = |pool: internal::Pool| PoolEntry {
        troubles: pool.troubles.iter().map(|trouble| format!("{}: {}", trouble.key, trouble.what)).collect(),
        name: pool.name,
        host: pool.host,
        medium: pool.medium,
        share: pool.share,
        place: pool.place,
        store: pool.store,
        total_bytes: pool.total_bytes,
        free_bytes: pool.free_bytes,
        promised_bytes: pool.promised_bytes,
        available_bytes: pool.available_bytes,
        down: pool.down,
    };
    let answer = ask(args, DescribeRequest::default())?;
    let entries: Vec<PoolEntry> = answer.pools.into_iter().map(entry).collect();
    let header =
        ["NAME", "HOST", "MEDIUM", "SHARE", "TOTAL", "FREE", "PROMISED", "AVAILABLE", "STATE", "STORE", "PLACE"];
    print(args, &header, &entries, |pool| {
        let state = match (pool.down.is_empty(), pool.troubles.len()) {
            (false, _) => format!("down: {}", pool.down),
            (true, 0) => "ok".to_owned(),
            (true, troubles) => format!("{troubles} troubles, see doctor"),
        };
        let sizes = [pool.total_bytes, pool.free_bytes, pool.promised_bytes, pool.available_bytes].map(size::show);
        let [total, free, promised, available] = sizes;
        let [name, host, medium, share, store, place] =
            [&pool.name, &pool.host, &pool.medium, &pool.share, &pool.store, &pool.place].map(|text| or_dash(text));
        vec![name, host, medium, share, total, free, promised, available, state, store, place]
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeEntry {
    id: String,
    name: String,
    pool: String,
    host: String,
    size_bytes: u64,
    content: String,
    allocation: String,
    nodes: Vec<String>,
    source: String,
}

/// `cistern volume ls`
pub fn volumes(args: &PeopleArgs) -> Done {
    let entry = |volume: internal::Volume| VolumeEntry {
        id: volume.id,
        name: volume.name,
        pool: volume.pool,
        host: volume.host,
        size_bytes: volume.size_bytes,
        content: volume.content,
        allocation: volume.allocation,
        nodes: volume.nodes,
        source: volume.source,
    };
    let answer = ask(args, DescribeRequest { volumes: true, snapshots: false })?;
    let entries: Vec<VolumeEntry> = answer.volumes.into_iter().map(entry).collect();
    print(args, &["NAME", "POOL", "HOST", "SIZE", "CONTENT", "ALLOCATION", "NODES", "ID"], &entries, |volume| {
        let nodes = or_dash(&volume.nodes.join(" "));
        let (name, pool, host) = (volume.name.clone(), volume.pool.clone(), volume.host.clone());
        let (content, allocation) = (volume.content.clone(), volume.allocation.clone());
        vec![name, pool, host, size::show(volume.size_bytes), content, allocation, nodes, volume.id.clone()]
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotEntry {
    id: String,
    name: String,
    pool: String,
    host: String,
    size_bytes: u64,
    volume: String,
    created_seconds: i64,
    ready: bool,
    copied_bytes: u64,
}

/// `cistern snapshot ls`
pub fn snapshots(args: &PeopleArgs) -> Done {
    let entry = |snapshot: internal::Snapshot| SnapshotEntry {
        id: snapshot.id,
        name: snapshot.name,
        pool: snapshot.pool,
        host: snapshot.host,
        size_bytes: snapshot.size_bytes,
        volume: snapshot.volume,
        created_seconds: snapshot.created_seconds,
        ready: snapshot.ready,
        copied_bytes: snapshot.copied_bytes,
    };
    let answer = ask(args, DescribeRequest { volumes: false, snapshots: true })?;
    let entries: Vec<SnapshotEntry> = answer.snapshots.into_iter().map(entry).collect();
    print(args, &["NAME", "POOL", "HOST", "SIZE", "STATE", "VOLUME", "ID"], &entries, |snapshot| {
        let state = match snapshot.ready {
            true => "ready".to_owned(),
            false => format!("copying, {} done", size::show(snapshot.copied_bytes)),
        };
        let (name, pool, host) = (snapshot.name.clone(), snapshot.pool.clone(), snapshot.host.clone());
        vec![name, pool, host, size::show(snapshot.size_bytes), state, snapshot.volume.clone(), snapshot.id.clone()]
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "B"], ["long", "x"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(super::table(&rows), "A     B\nlong  x\n");
    }
}
