/// A device model: plain data that answers register accesses.
///
/// A device knows no engine, no host clock and no file. Time comes in as an argument, output goes out through properties
/// that the platform polls, so a device can be saved, restored, compared and tested without a machine.
public protocol Device: Codable, Equatable, Sendable {
    /// The next moment after `now` at which an output of the device changes by itself; nil when nothing is scheduled.
    func nextDeadline(after now: Nanoseconds) -> Nanoseconds?

    /// Brings the device's outputs to the moment `now`. Moments never go backwards.
    mutating func advance(to now: Nanoseconds)
}

extension Device {
    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? { nil }
    public mutating func advance(to now: Nanoseconds) {}
}

/// A device with registers in the I/O port space.
public protocol PortDevice: Device {
    /// Reads `size` bytes (1, 2 or 4) at `offset` from the device's first port. Unused upper bits are 0.
    mutating func read(offset: UInt16, size: Int, at now: Nanoseconds) -> UInt32

    /// Writes the low `size` bytes (1, 2 or 4) of `value` at `offset` from the device's first port.
    mutating func write(offset: UInt16, size: Int, value: UInt32, at now: Nanoseconds)
}
