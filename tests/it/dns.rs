//! A real DNS server on loopback that answers as a test asks, question by question.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

pub enum Answer {
    Addresses(Vec<IpAddr>),
    NoSuchName,
    Failure,
    Silence,
}

/// Stopped when dropped.
pub struct Dns {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
    task: JoinHandle<()>,
}

impl Dns {
    /// `zone` gets a name without its trailing dot and how often this question was asked before.
    pub async fn start(zone: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Dns {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn({
            let asked = asked.clone();
            async move {
                let mut buffer = [0; 4096];
                while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                    let question = Message::from_vec(&buffer[..length]).unwrap();
                    if let Some(answer) = answer(&question, &zone, &asked) {
                        socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                    }
                }
            }
        });
        Dns { address, asked, task }
    }

    /// How often this name's IPv4 addresses were asked for.
    pub fn asked(&self, name: &str) -> usize {
        count(&self.asked.lock().unwrap(), name, RecordType::A)
    }

    /// Every name asked for.
    pub fn names(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn count(asked: &[(String, RecordType)], name: &str, kind: RecordType) -> usize {
    asked.iter().filter(|entry| entry.0 == name && entry.1 == kind).count()
}

fn answer(
    question: &Message,
    zone: &impl Fn(&str, usize) -> Answer,
    asked: &Mutex<Vec<(String, RecordType)>>,
) -> Option<Message> {
    let query = question.queries.first()?.clone();
    let name = query.name().to_ascii();
    let name = name.trim_end_matches('.').to_string();
    let earlier = {
        let mut asked = asked.lock().unwrap();
        let earlier = count(&asked, &name, query.query_type());
        asked.push((name.clone(), query.query_type()));
        earlier
    };
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_available = true;
    message.add_query(query.clone());
    match zone(&name, earlier) {
        Answer::Silence => return None,
        Answer::NoSuchName => message.metadata.response_code = ResponseCode::NXDomain,
        Answer::Failure => message.metadata.response_code = ResponseCode::ServFail,
        Answer::Addresses(addresses) => {
            for address in addresses {
                let data = match (address, query.query_type()) {
                    (IpAddr::V4(address), RecordType::A) => RData::A(A(address)),
                    (IpAddr::V6(address), RecordType::AAAA) => RData::AAAA(AAAA(address)),
                    _ => continue,
                };
                message.add_answer(Record::from_rdata(query.name().clone(), 0, data));
            }
        }
    }
    Some(message)
}
