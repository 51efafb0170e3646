/// A device with an 8-bit data path, as most of the first PCs' devices have.
///
/// A wider access reaches such a device the way an ISA bus brings it: as single bytes at rising ports, low byte first.
public protocol BytePortDevice: PortDevice {
    /// Reads the byte at `offset` from the device's first port.
    mutating func readByte(_ offset: UInt16, at now: Nanoseconds) -> UInt8

    /// Writes the byte at `offset` from the device's first port.
    mutating func writeByte(_ offset: UInt16, _ value: UInt8, at now: Nanoseconds)
}

extension BytePortDevice {
    public mutating func read(offset: UInt16, size: Int, at now: Nanoseconds) -> UInt32 {
        var value: UInt32 = 0
        for i in 0..<byteCount(ofAccess: size) {
            value |= UInt32(readByte(offset &+ UInt16(i), at: now)) << UInt32(8 &* i)
        }
        return value
    }

    public mutating func write(offset: UInt16, size: Int, value: UInt32, at now: Nanoseconds) {
        for i in 0..<byteCount(ofAccess: size) {
            writeByte(offset &+ UInt16(i), UInt8(truncatingIfNeeded: value >> UInt32(8 &* i)), at: now)
        }
    }
}

/// How many bytes a port access of `size` moves: 0 to 4, also for a size that no IN or OUT has.
@inlinable func byteCount(ofAccess size: Int) -> Int { min(max(size, 0), 4) }
