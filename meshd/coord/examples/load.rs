//! Load.
#[path = "../tests/common/mod.rs"]
mod common;
use common::*;
use std::time::{Duration, Instant};
use vdc_coord::{Op, Transaction};

fn put(key: String, value: &[u8]) -> Transaction {
    let op = Op::Put { key: key.into_bytes().into(), value: value.to_vec().into(), lease: None };
    Transaction { success: vec![op], ..Transaction::default() }
}

#[tokio::main]
async fn main() {
    let n: u8 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(3);
    let cluster = Cluster::start(n).await;
    let path = cluster.scratch.path().join("raw");
    let file = std::fs::File::create(&path).unwrap();
    use std::os::unix::fs::FileExt as _;
    file.write_all_at(&[0; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let started = Instant::now();
    let mut n = 0;
    while started.elapsed() < Duration::from_secs(2) {
        file.write_all_at(&[n as u8; 512], 512 * (n % 2000)).unwrap();
        file.sync_data().unwrap();
        n += 1;
    }
    println!("raw fdatasync {:.0}/s", n as f64 / started.elapsed().as_secs_f64());
    let leader = cluster.leader().unwrap();
    for clients in [1_usize, 64] {
        let started = Instant::now();
        let mut tasks = vec![];
        for c in 0..clients {
            let client = cluster.client(leader);
            tasks.push(tokio::spawn(async move {
                let mut done = 0_u64;
                while started.elapsed() < Duration::from_secs(4) {
                    client.transact(put(format!("k{c}-{}", done % 1000), &[7; 200]), LIMIT).await.unwrap();
                    done += 1;
                }
                done
            }));
        }
        let mut all = 0;
        for t in tasks {
            all += t.await.unwrap();
        }
        println!("{clients} writers: {:.0}/s", all as f64 / started.elapsed().as_secs_f64());
        let started = Instant::now();
        let mut tasks = vec![];
        for c in 0..clients {
            let client = cluster.client(leader);
            tasks.push(tokio::spawn(async move {
                let mut done = 0_u64;
                while started.elapsed() < Duration::from_secs(3) {
                    client.get(format!("k{c}-{}", done % 1000).as_bytes(), LIMIT).await.unwrap();
                    done += 1;
                }
                done
            }));
        }
        let mut all = 0;
        for t in tasks {
            all += t.await.unwrap();
        }
        println!("{clients} readers: {:.0}/s", all as f64 / started.elapsed().as_secs_f64());
    }
    println!("{:?}", cluster.group(leader).standing());
}
