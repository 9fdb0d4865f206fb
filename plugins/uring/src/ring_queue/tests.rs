//! Answers of the kernel that cannot be had from it at will.
use super::*;
use crate::{
    Options, Uring,
    protocol::Files,
    testing::{Instance, request},
};
use pollux_abi::{
    block::{Block, BlockInfo, OpenContext},
    block_v1::{BlockRequest, POLLUX_BLOCK_FLUSH},
};
use std::mem::ManuallyDrop;

/// The backend, whose queues are told "not now" while another queue's flush fails.
struct Hesitant(Uring);

/// What is in its ring is never submitted, and so never comes back.
struct HesitantQueue(ManuallyDrop<RingQueue<Files>>);

impl Block for Hesitant {
    type Options = Options;
    type Queue = HesitantQueue;

    fn open(options: Options, context: &OpenContext) -> Result<Self, Error> {
        Uring::open(options, context).map(Hesitant)
    }
    fn info(&self) -> BlockInfo {
        self.0.info()
    }
    fn open_queue(&self, _index: u32, depth: u32) -> Result<HesitantQueue, Error> {
        let (queue, _) = RingQueue::open(&self.0.image, depth, || Ok(Files { registered: None }))?;
        Ok(HesitantQueue(ManuallyDrop::new(queue)))
    }
}

impl BlockQueue for HesitantQueue {
    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        let queue = &mut *self.0;
        let mut first = None;
        for request in requests {
            let index = queue.free.pop().expect("room");
            let (operation, step) = queue.rules.begin(request, &queue.image, &queue.image.file).expect("a flush");
            queue.slots[index as usize] = Some(Slot::new(*request, operation, step));
            queue.begin(index, done);
            first.get_or_insert(index);
        }
        queue.image.flush_latch.outcome(-libc::EIO);
        queue.completed(first.expect("a request"), -libc::EAGAIN, done);
        requests.len()
    }
    fn poll(&mut self, _done: &mut Completions) {}
}

#[test]
fn flushes_behind_one_that_is_asked_for_again_end_with_the_failure_of_another_queue() {
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(1 << 20).expect("room");
    let options = format!(r#"{{"path": {:?}, "direct": false, "engine": "io_uring"}}"#, image.path());
    let instance = Instance::<Hesitant>::open(&options).expect("opens");
    let mut queue = instance.queue(4);
    let flushes = [0, 1, 2].map(|token| BlockRequest { token, ..request(POLLUX_BLOCK_FLUSH, 0, 0, 0) });
    assert_eq!(queue.submit(&flushes), 3);
    let mut ended: Vec<_> = queue.done.iter().map(|completion| (completion.token, completion.result)).collect();
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2].map(|token| (token, -libc::EIO)));
}
