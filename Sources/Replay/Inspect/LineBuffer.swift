/// Text on its way out, byte by byte: for output of millions of lines, where strings would take most of the time.
struct LineBuffer {
    private let bytes: UnsafeMutablePointer<UInt8>
    private(set) var count = 0
    private let flush: (UnsafeRawBufferPointer) -> Void

    private static let capacity = 1 << 20
    /// No line is longer.
    static let longestLine = 16 << 10

    /// `flush` takes what has been written, a megabyte at a time.
    init(flush: @escaping (UnsafeRawBufferPointer) -> Void) {
        bytes = .allocate(capacity: Self.capacity)
        self.flush = flush
    }

    /// Writes out what there is.
    mutating func writeOut() {
        flush(UnsafeRawBufferPointer(start: bytes, count: count))
        count = 0
    }

    /// To be called once, last.
    func free() { bytes.deallocate() }

    /// Ends a line.
    @inline(__always)
    mutating func endLine() {
        bytes[count] = 10
        count += 1
        if count > Self.capacity - Self.longestLine {
            writeOut()
        }
    }

    @inline(__always)
    mutating func append(_ text: StaticString) {
        (bytes + count).update(from: text.utf8Start, count: text.utf8CodeUnitCount)
        count += text.utf8CodeUnitCount
    }

    /// Cuts what would make the line too long.
    @inline(__always)
    mutating func append(_ text: UnsafeBufferPointer<UInt8>) {
        guard let start = text.baseAddress else { return }
        let length = min(text.count, Self.longestLine / 4)
        (bytes + count).update(from: start, count: length)
        count += length
    }

    mutating func append(_ text: String) {
        var text = text
        text.withUTF8 { append($0) }
    }

    /// In hexadecimal digits without leading zeros.
    @inline(__always)
    mutating func append(hex value: UInt64) {
        let digits = max(1, (67 - value.leadingZeroBitCount) / 4)
        var rest = value
        for i in (0..<digits).reversed() {
            bytes[count + i] = Self.digit(rest & 15)
            rest >>= 4
        }
        count += digits
    }

    /// Two digits.
    @inline(__always)
    mutating func append(byte value: UInt8) {
        bytes[count] = Self.digit(UInt64(value >> 4))
        bytes[count + 1] = Self.digit(UInt64(value & 15))
        count += 2
    }

    @inline(__always)
    private static func digit(_ value: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: value < 10 ? 0x30 + value : 0x57 + value) }

    @inline(__always)
    mutating func append(decimal value: UInt64) {
        var rest = value
        var digits = 1
        while rest >= 10 {
            rest /= 10
            digits += 1
        }
        rest = value
        for i in (0..<digits).reversed() {
            bytes[count + i] = UInt8(truncatingIfNeeded: 0x30 + rest % 10)
            rest /= 10
        }
        count += digits
    }
}
