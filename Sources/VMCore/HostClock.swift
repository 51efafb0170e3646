import CKVM

/// The host's monotonic clock.
public func hostTime() -> Nanoseconds { Nanoseconds(ckvm_monotonic_ns()) }

extension Nanoseconds {
    public var seconds: Double { Double(rawValue) / 1e9 }
}
