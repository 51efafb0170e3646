import Foundation

/// A column of numbers in its cheapest form: a head (a few bytes) and byte planes.
///
/// A plane holds one byte of every number, lowest first, so that zstd sees the noisy low bytes apart from the quiet
/// high ones. Before that the column is transformed; the transform with the least entropy wins.
struct ColumnHead {
    /// The raw values are the format's.
    enum Transform: UInt8 {
        /// All numbers are `first`; there are no planes.
        case constant = 0
        /// The numbers.
        case raw = 1
        /// Zigzag differences, from the second number on.
        case delta = 2
        /// Zigzag differences of differences, from the third number on. `second` is the first difference.
        case deltaOfDelta = 3
        /// The numbers as zigzag of a signed number, for small negative ones.
        case zigzag = 4

        /// How many numbers are in the head instead of the planes.
        var skipped: Int {
            switch self {
            case .constant, .raw, .zigzag: 0
            case .delta: 1
            case .deltaOfDelta: 2
            }
        }
    }

    var transform: Transform
    /// Bytes of a transformed number: the number of planes, 0 to 8.
    var width = 0
    var first: UInt64 = 0
    var second: Int64 = 0

    func write(to sink: inout ByteSink) {
        sink.byte(transform.rawValue | UInt8(width) << 4)
        if transform != .raw && transform != .zigzag { sink.varint(first) }
        if transform == .deltaOfDelta { sink.signed(second) }
    }

    /// The head of a column of `count` numbers.
    static func read(from source: inout ByteSource, count: Int) throws(Malformed) -> ColumnHead {
        let byte = try source.byte()
        guard let transform = Transform(rawValue: byte & 15), byte >> 4 <= 8 else {
            throw Malformed("unknown column transform \(byte)")
        }
        guard transform.skipped <= count, transform != .constant || byte >> 4 == 0 else {
            throw Malformed("a column transform that doesn't fit its \(count) numbers")
        }
        var head = ColumnHead(transform: transform, width: Int(byte >> 4))
        if transform != .raw && transform != .zigzag { head.first = try source.varint() }
        if transform == .deltaOfDelta { head.second = try source.signed() }
        return head
    }

    /// Bytes of all planes of a column of `count` numbers.
    func planeBytes(count: Int) -> Int {
        transform == .constant ? 0 : width * (count - transform.skipped)
    }
}

/// Writes columns. A value type with scratch space that is kept from one column to the next.
struct ColumnEncoder {
    private var scratch: [UInt64] = []
    private var histogram = [UInt16](repeating: 0, count: ColumnEncoder.choices.count * 8 * 256)

    private static let choices: [ColumnHead.Transform] = [.raw, .delta, .deltaOfDelta, .zigzag]
    /// Numbers that are looked at to choose a transform: enough to tell them apart, and cheap.
    private static let sample = 2048
    /// n·log2(n), for the entropy.
    private static let nLogN: [Float] = (0...sample).map { $0 == 0 ? 0 : Float($0) * Float(log2(Double($0))) }

    /// Appends the planes of `values` to `sink`, and their ends to `cuts`; returns the head. `values` isn't empty.
    mutating func encode(
        _ values: UnsafeBufferPointer<UInt64>, planes sink: inout ByteSink, cuts: inout [Int]
    ) -> ColumnHead {
        let first = values[0]
        guard values.contains(where: { $0 != first }) else { return ColumnHead(transform: .constant, first: first) }
        var head = ColumnHead(transform: choose(values), first: first)
        if head.transform == .deltaOfDelta { head.second = Int64(bitPattern: values[1] &- first) }
        let count = values.count - head.transform.skipped
        if scratch.count < count { scratch = [UInt64](repeating: 0, count: max(count, 2 * scratch.count)) }
        var bits: UInt64 = 0
        scratch.withUnsafeMutableBufferPointer { scratch in
            for index in 0..<count {
                let number = Self.transformed(values, index + head.transform.skipped, head.transform)
                scratch[index] = number
                bits |= number
            }
        }
        head.width = (64 - bits.leadingZeroBitCount + 7) / 8
        for plane in 0..<head.width {
            let shift = UInt64(8 * plane)
            let start = sink.bytes.count
            sink.bytes.append(contentsOf: repeatElement(0, count: count))
            sink.bytes.withUnsafeMutableBufferPointer { bytes in
                for index in 0..<count { bytes[start + index] = UInt8(truncatingIfNeeded: scratch[index] >> shift) }
            }
            cuts.append(sink.bytes.count)
        }
        return head
    }

    @inline(__always)
    private static func transformed(
        _ values: UnsafeBufferPointer<UInt64>, _ index: Int, _ transform: ColumnHead.Transform
    ) -> UInt64 {
        switch transform {
        case .constant: 0
        case .raw: values[index]
        case .zigzag: Trace.zigzag(Int64(bitPattern: values[index]))
        case .delta: Trace.zigzag(Int64(bitPattern: values[index] &- values[index - 1]))
        case .deltaOfDelta:
            Trace.zigzag(Int64(bitPattern: values[index] &- 2 &* values[index - 1] &+ values[index - 2]))
        }
    }

    /// The transform with the least order-0 entropy over all byte planes of a sample, and `raw` where it is about even:
    /// zstd then also finds repetitions.
    private mutating func choose(_ values: UnsafeBufferPointer<UInt64>) -> ColumnHead.Transform {
        guard values.count > 4 else { return .raw }
        let choices = Self.choices
        // Four windows, so that a phase at the start doesn't decide for all.
        let window = min(values.count - 2, Self.sample / 4)
        let starts = values.count - 2 <= Self.sample
            ? [(2, values.count)]
            : (0..<4).map { part in
                let start = 2 + part * (values.count - 2 - window) / 3
                return (start, start + window)
            }
        var total = 0
        var bits: [UInt64] = [0, 0, 0, 0]
        histogram.withUnsafeMutableBufferPointer { histogram in
            histogram.update(repeating: 0)
            for (start, end) in starts {
                total += end - start
                for index in start..<end {
                    for choice in 0..<choices.count {
                        var number = Self.transformed(values, index, choices[choice])
                        bits[choice] |= number
                        var slot = choice * 2048
                        while number != 0 {
                            histogram[slot + Int(number & 255)] &+= 1
                            number >>= 8
                            slot += 256
                        }
                    }
                }
            }
        }
        var best = ColumnHead.Transform.raw
        var least = cost(of: 0, bits: bits[0], total: total) * 0.97
        for choice in 1..<choices.count {
            let bits = cost(of: choice, bits: bits[choice], total: total)
            if bits < least { (best, least) = (choices[choice], bits) }
        }
        return best
    }

    /// Bits that order-0 coding of all planes would take, tables included. Numbers too short for a plane weren't
    /// counted there: whatever isn't another symbol is a zero.
    private func cost(of choice: Int, bits: UInt64, total: Int) -> Float {
        let width = (64 - bits.leadingZeroBitCount + 7) / 8
        var sum: Float = 0
        for plane in 0..<width {
            let base = choice * 2048 + plane * 256
            var entropy = Self.nLogN[total]
            var counted = 0
            var symbols = 0
            for symbol in 1..<256 {
                let count = Int(histogram[base + symbol])
                guard count > 0 else { continue }
                entropy -= Self.nLogN[count]
                counted += count
                symbols += 1
            }
            entropy -= Self.nLogN[total - counted]
            sum += entropy + Float(4 * symbols)
        }
        return sum
    }
}

/// Reads columns.
enum ColumnDecoder {
    /// Fills `values`, as many numbers as `head` was read for, from `planes`, which were checked to be
    /// `head.planeBytes` long.
    static func decode(
        _ head: ColumnHead, planes: UnsafeRawBufferPointer, into values: UnsafeMutableBufferPointer<UInt64>
    ) {
        guard head.transform != .constant else { return values.update(repeating: head.first) }
        let skipped = head.transform.skipped
        let count = values.count - skipped
        for index in 0..<count { values[skipped + index] = 0 }
        var offset = 0
        for plane in 0..<head.width {
            let shift = UInt64(8 * plane)
            for index in 0..<count { values[skipped + index] |= UInt64(planes[offset + index]) << shift }
            offset += count
        }
        switch head.transform {
        case .constant, .raw: break
        case .zigzag:
            for index in 0..<count { values[index] = UInt64(bitPattern: unzigzag(values[index])) }
        case .delta:
            values[0] = head.first
            var last = head.first
            for index in 1..<values.count {
                last &+= UInt64(bitPattern: unzigzag(values[index]))
                values[index] = last
            }
        case .deltaOfDelta:
            var step = UInt64(bitPattern: head.second)
            var last = head.first &+ step
            values[0] = head.first
            values[1] = last
            for index in 2..<values.count {
                step &+= UInt64(bitPattern: unzigzag(values[index]))
                last &+= step
                values[index] = last
            }
        }
    }
}
