/// Bytes being written. `ByteSource` reads what this writes.
struct ByteSink {
    var bytes: [UInt8] = []

    mutating func byte(_ value: UInt8) { bytes.append(value) }

    /// LEB128: seven bits a byte, low ones first.
    mutating func varint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(rest))
    }

    mutating func signed(_ value: Int64) { varint(zigzag(value)) }
}

/// Bytes being read. Nothing here traps or reads beyond the end, whatever the bytes are.
struct ByteSource {
    let bytes: [UInt8]
    private(set) var offset = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    var remaining: Int { bytes.count - offset }

    mutating func byte() throws(Malformed) -> UInt8 {
        guard offset < bytes.count else { throw Malformed("ends too early") }
        defer { offset += 1 }
        return bytes[offset]
    }

    mutating func varint() throws(Malformed) -> UInt64 {
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while true {
            let next = try byte()
            guard shift < 63 || next <= 1 else { throw Malformed("a number is longer than 64 bits") }
            value |= UInt64(next & 0x7F) << shift
            if next < 0x80 { return value }
            shift += 7
        }
    }

    mutating func signed() throws(Malformed) -> Int64 { unzigzag(try varint()) }

    /// A count of things that take at least `each` bytes, so that it can't exceed what is there.
    mutating func count(atMost limit: Int, each: Int = 0, of what: String) throws(Malformed) -> Int {
        let value = try varint()
        guard value <= UInt64(limit) else { throw Malformed("claims \(value) \(what), at most \(limit) are possible") }
        guard Int(value) * each <= remaining else { throw Malformed("claims \(value) \(what), more than it has bytes") }
        return Int(value)
    }

    /// The range of the next `count` bytes, which are there.
    mutating func take(_ count: Int) throws(Malformed) -> Range<Int> {
        guard count >= 0, count <= remaining else { throw Malformed("ends too early") }
        defer { offset += count }
        return offset..<(offset + count)
    }
}

/// Small magnitudes become small numbers: 0, -1, 1, -2, 2 …
@inline(__always) func zigzag(_ value: Int64) -> UInt64 {
    UInt64(bitPattern: (value << 1) ^ (value >> 63))
}

@inline(__always) func unzigzag(_ value: UInt64) -> Int64 {
    Int64(bitPattern: value >> 1) ^ -Int64(bitPattern: value & 1)
}
