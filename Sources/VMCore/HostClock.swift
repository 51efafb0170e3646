import CKVM

/// The host's monotonic clock.
public func hostTime() -> Nanoseconds { Nanoseconds(ckvm_monotonic_ns()) }

/// The processor time that this thread has used, guest and all.
public func threadTime() -> Nanoseconds { Nanoseconds(ckvm_thread_ns()) }

extension Nanoseconds {
    public var seconds: Double { Double(rawValue) / 1e9 }
}
