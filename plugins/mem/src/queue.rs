//! One queue of the backend: every request completes in `submit`.
use crate::medium::Medium;
use pollux_abi::block::{BlockQueue, Completions, EINVAL, ENOTSUP, EROFS, Operation, Request};
use std::sync::Arc;

/// One queue of the backend.
#[derive(Debug)]
pub struct MemQueue {
    medium: Arc<Medium>,
}

impl MemQueue {
    pub(crate) fn new(medium: Arc<Medium>) -> Self {
        MemQueue { medium }
    }

    /// A hint for the request after this one.
    #[inline]
    fn fetch(&self, next: &Request) {
        if next.operation() == Some(Operation::Read)
            && let Some(part) = self.medium.range(next.offset(), next.length())
        {
            self.medium.fetch(&part);
        }
    }

    /// Does a request by the mapping; or by system calls if that turns out to have lost pages.
    #[inline]
    fn execute(&self, request: &Request) -> i32 {
        let result = self.access(request);
        // After the access: it was to the file and nothing else if the mapping is whole now.
        if result == 0 && self.medium.is_lost() { self.execute_by_calls(request) } else { result }
    }

    #[cold]
    #[inline(never)]
    fn execute_by_calls(&self, request: &Request) -> i32 {
        self.medium.execute_by_calls(request)
    }

    #[inline]
    fn access(&self, request: &Request) -> i32 {
        let medium = &*self.medium;
        let Some(operation) = request.operation() else { return -ENOTSUP };
        if operation == Operation::Flush {
            return medium.flush();
        }
        let Some(range) = medium.range(request.offset(), request.length()) else { return -EINVAL };
        if medium.is_read_only() && operation != Operation::Read {
            return -EROFS;
        }
        match operation {
            Operation::Read => medium.read(&range, request.segments()),
            Operation::Write => medium.write(&range, request.segments()),
            Operation::Discard => return medium.discard(&range),
            Operation::WriteZeroes => medium.write_zeroes(&range, request.may_unmap()),
            Operation::Flush => {}
        }
        if request.is_fua() { medium.flush_range(&range) } else { 0 }
    }
}

impl BlockQueue for MemQueue {
    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        if self.medium.is_lost() {
            requests.iter().for_each(|request| done.complete(request.token(), self.execute_by_calls(request)));
            return requests.len();
        }
        for (index, request) in requests.iter().enumerate() {
            if let Some(next) = requests.get(index + 1) {
                self.fetch(next);
            }
            done.complete(request.token(), self.execute(request));
        }
        requests.len()
    }

    fn poll(&mut self, _done: &mut Completions) {}
}
