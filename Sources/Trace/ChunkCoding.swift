import Foundation
import VMCore

// The bytes of a chunk, before zstd:
//
//   varint  events, identities, payload bytes, anchors
//   dict    for each identity: kind, form, size, flags (a byte each), count (varint), address (signed varint,
//           difference from the identity before)
//   heads   for each identity the column head of its values; then, if there are anchors, those of rip, registers,
//           memory, instructions, elapsed (`ValueColumn.swift`)
//   index   which identity each event has: nothing for one identity, a byte each up to 256, else two planes
//   planes  in the order of the heads
//   payload the bytes of strings and memory writes, one after the other
//
// Values are grouped by identity: what one register answered stands side by side. The value of an event with a payload
// is the payload's length, and that of an event with an anchor the anchor's `general`. Brief anchors are in the same columns.

/// What an event carries beside its identity. The raw values are the format's.
enum EventForm: UInt8 {
    case plain = 0
    case payload = 1
    case anchor = 2
    case briefAnchor = 3

    init(_ anchor: Anchor) { self = anchor.isBrief ? .briefAnchor : .anchor }

    var hasAnchor: Bool { self == .anchor || self == .briefAnchor }
}

/// An event in memory on its way to the file.
struct EventRecord {
    var address: UInt64
    /// The value, the length of the payload, or what the anchor has of the general registers.
    var value: UInt64
    /// Kind, form, size, flags (a byte each, from bit 0) and count (from bit 32), so that two identities compare and
    /// hash as two words.
    var shape: UInt64

    @inline(__always)
    init(_ identity: EventIdentity, _ form: EventForm, value: UInt64) {
        address = identity.address
        self.value = value
        shape = UInt64(identity.kind.rawValue) | UInt64(form.rawValue) << 8 | UInt64(identity.size) << 16
            | UInt64(identity.flags) << 24 | UInt64(identity.count) << 32
    }

    @inline(__always) var isExit: Bool { UInt8(truncatingIfNeeded: shape) < 16 }
    @inline(__always) var form: UInt8 { UInt8(truncatingIfNeeded: shape >> 8) }
}

/// A chunk as it goes into the table.
struct EncodedChunk {
    var events: Int
    var exits: Int
    var payloadBytes: Int
    var anchors: Int
    var rawBytes: Int
    var digest: UInt64
    var data: [UInt8]
}

/// Writes chunks. Keeps its scratch space from one to the next.
struct ChunkEncoder {
    private struct Entry {
        var address: UInt64
        var shape: UInt64
        var events = 0
    }

    private let zstd: ZstdCompressor
    private var columns = ColumnEncoder()
    private var slots: [Int32] = []
    private var entries: [Entry] = []
    private var index = [UInt16](repeating: 0, count: TraceFormat.Limit.chunkEvents)
    private var grouped = [UInt64](repeating: 0, count: TraceFormat.Limit.chunkEvents)

    init(level: Int32) throws(TraceError) { zstd = try ZstdCompressor(level: level) }

    /// Encodes all of `records`, at most a chunk's, with the first of `payload` and `anchors` that belong to them.
    ///
    /// The caller's promise: `payload` and `anchors` hold at least what `records` refer to.
    mutating func encode(
        _ records: UnsafeBufferPointer<EventRecord>, payload: UnsafeRawPointer, anchors: UnsafePointer<Anchor>
    ) throws(TraceError) -> EncodedChunk {
        intern(records)
        let totals = try check()
        group(records)

        var head = ByteSink()
        var planes = ByteSink()
        var cuts: [Int] = []
        head.varint(UInt64(records.count))
        head.varint(UInt64(entries.count))
        var payloadBytes: UInt64 = 0
        for record in records where record.form == EventForm.payload.rawValue { payloadBytes += record.value }
        head.varint(payloadBytes)
        head.varint(UInt64(totals.anchors))
        writeDictionary(to: &head)

        var start = 0
        for entry in entries {
            grouped.withUnsafeBufferPointer { grouped in
                let values = UnsafeBufferPointer(rebasing: grouped[start..<(start + entry.events)])
                columns.encode(values, planes: &planes, cuts: &cuts).write(to: &head)
            }
            start += entry.events
        }
        if totals.anchors > 0 {
            for field in AnchorField.allCases {
                let values = (0..<totals.anchors).map { field.of(anchors[$0]) }
                values.withUnsafeBufferPointer {
                    columns.encode($0, planes: &planes, cuts: &cuts).write(to: &head)
                }
            }
        }
        let payload = UnsafeRawBufferPointer(start: payload, count: Int(payloadBytes))
        var chunk = try compress(head, planes, cuts, events: records.count, payload: payload)
        chunk.exits = totals.exits
        chunk.anchors = totals.anchors
        return chunk
    }

    /// Gives each event its identity's number, in order of first appearance.
    private mutating func intern(_ records: UnsafeBufferPointer<EventRecord>) {
        entries.removeAll(keepingCapacity: true)
        var size = 1024
        while size < 2 * records.count { size *= 2 }
        if slots.count != size {
            slots = [Int32](repeating: -1, count: size)
        } else {
            for slot in slots.indices { slots[slot] = -1 }
        }
        let mask = size - 1
        for (event, record) in records.enumerated() {
            let mixed = (record.address ^ record.shape.byteSwapped) &* 0x9E37_79B9_7F4A_7C15
            var slot = Int(truncatingIfNeeded: (mixed ^ mixed >> 29) >> 20) & mask
            while true {
                let entry = Int(slots[slot])
                if entry < 0 {
                    slots[slot] = Int32(entries.count)
                    index[event] = UInt16(truncatingIfNeeded: entries.count)
                    entries.append(Entry(address: record.address, shape: record.shape, events: 1))
                    break
                }
                if entries[entry].address == record.address && entries[entry].shape == record.shape {
                    entries[entry].events += 1
                    index[event] = UInt16(truncatingIfNeeded: entry)
                    break
                }
                slot = (slot + 1) & mask
            }
        }
    }

    /// Refuses what the reader would refuse, and counts exits and anchors.
    private func check() throws(TraceError) -> (exits: Int, anchors: Int) {
        var exits = 0
        var anchors = 0
        for entry in entries {
            do {
                let (identity, form) = try EventIdentity.checked(shape: entry.shape, address: entry.address)
                if identity.kind.isExit { exits += entry.events }
                if form.hasAnchor { anchors += entry.events }
            } catch {
                throw .invalid("an event that no trace can hold: \(error.what)")
            }
        }
        return (exits, anchors)
    }

    private mutating func group(_ records: UnsafeBufferPointer<EventRecord>) {
        var next = [Int](unsafeUninitializedCapacity: entries.count) { next, count in
            var start = 0
            for (number, entry) in entries.enumerated() {
                next[number] = start
                start += entry.events
            }
            count = entries.count
        }
        for event in 0..<records.count {
            let entry = Int(index[event])
            grouped[next[entry]] = records[event].value
            next[entry] += 1
        }
    }

    private func writeDictionary(to sink: inout ByteSink) {
        var last: UInt64 = 0
        for entry in entries {
            for shift in stride(from: UInt64(0), to: 32, by: 8) {
                sink.byte(UInt8(truncatingIfNeeded: entry.shape >> shift))
            }
            sink.varint(entry.shape >> 32)
            sink.signed(Int64(bitPattern: entry.address &- last))
            last = entry.address
        }
    }

    private func compress(
        _ head: ByteSink, _ planes: ByteSink, _ planeCuts: [Int], events: Int, payload: UnsafeRawBufferPointer
    ) throws(TraceError) -> EncodedChunk {
        var raw = head.bytes
        raw.reserveCapacity(head.bytes.count + planes.bytes.count + payload.count + 2 * events)
        var cuts = [raw.count]
        if entries.count > 1 {
            for event in 0..<events { raw.append(UInt8(truncatingIfNeeded: index[event])) }
        }
        if entries.count > 256 {
            cuts.append(raw.count)
            for event in 0..<events { raw.append(UInt8(truncatingIfNeeded: index[event] >> 8)) }
        }
        cuts.append(raw.count)
        let base = raw.count
        cuts += planeCuts.map { base + $0 }
        raw += planes.bytes
        raw += payload
        // A block costs about a hundred bytes of tables, so columns shorter than a kilobyte share one.
        var last = 0
        cuts.removeAll { cut in
            guard cut - last >= 1024 && raw.count - cut >= 64 else { return true }
            last = cut
            return false
        }
        let data = try zstd.compress(raw, cuts: cuts)
        return EncodedChunk(
            events: events, exits: 0, payloadBytes: payload.count, anchors: 0, rawBytes: raw.count,
            digest: data.withUnsafeBytes { digest64($0) }, data: data)
    }
}

/// The columns of an anchor, in the format's order.
enum AnchorField: CaseIterable {
    case rip, registers, memory, instructions, elapsed

    func of(_ anchor: Anchor) -> UInt64 {
        switch self {
        case .rip: anchor.rip
        case .registers: anchor.registers
        case .memory: anchor.memory
        case .instructions: anchor.instructions
        case .elapsed: anchor.elapsed.rawValue
        }
    }
}

extension EventIdentity {
    /// The identity in a dictionary entry, if it is one.
    static func checked(shape: UInt64, address: UInt64) throws(Malformed) -> (EventIdentity, EventForm) {
        let bytes = (0..<4).map { UInt8(truncatingIfNeeded: shape >> UInt64(8 * $0)) }
        guard let kind = EventKind(rawValue: bytes[0]) else { throw Malformed("unknown event kind \(bytes[0])") }
        guard let form = EventForm(rawValue: bytes[1]), form.hasAnchor == kind.isAnchored else {
            throw Malformed("a \(kind) event of form \(bytes[1])")
        }
        guard [0, 1, 2, 4, 8].contains(bytes[2]) else { throw Malformed("a \(kind) event of size \(bytes[2])") }
        let identity = EventIdentity(
            kind: kind, size: bytes[2], flags: bytes[3], count: UInt32(truncatingIfNeeded: shape >> 32),
            address: address)
        return (identity, form)
    }
}

/// A chunk read back: everything an `EventCursor` needs, in columns.
struct DecodedChunk {
    struct Entry {
        var identity: EventIdentity
        var form: EventForm
        /// Where the identity's next value stands in `values`.
        var next: Int
    }

    var entries: [Entry] = []
    /// The identity's number for each event.
    var index: [UInt16] = []
    /// Values grouped by identity.
    var values: [UInt64] = []
    var anchors: [Anchor] = []
    /// The chunk's bytes; the payload is their end, from `payload` on.
    var raw: [UInt8] = []
    var payload = 0
    var exits = 0

    var events: Int { index.count }

    init() {}

    /// Decodes and checks a chunk that claims `events` events, at least 1, and `exits` exits.
    init(raw: [UInt8], events: Int, exits: Int) throws(Malformed) {
        var source = ByteSource(raw)
        guard try source.varint() == UInt64(events) else { throw Malformed("it hasn't the stated \(events) events") }
        let identities = try source.count(atMost: events, each: 7, of: "identities")
        let payloadBytes = try source.count(atMost: TraceFormat.Limit.chunkRaw, each: 1, of: "payload bytes")
        let anchorCount = try source.count(atMost: events, of: "anchors")
        guard identities > 0 else { throw Malformed("it has events without an identity") }
        try readDictionary(identities, from: &source)

        // The index stands after the heads, whose number and order depend only on the dictionary; but how long a column
        // is depends on the index. So heads are read first and checked against the counts after it.
        var afterHeads = source
        let heads = identities + (anchorCount > 0 ? AnchorField.allCases.count : 0)
        for _ in 0..<heads { _ = try ColumnHead.read(from: &afterHeads, count: Int.max) }
        let counts = try readIndex(events, from: &afterHeads)

        values = [UInt64](repeating: 0, count: events)
        var start = 0
        for number in entries.indices {
            let end = start + counts[number]
            try Self.readColumn(into: &values, start..<end, heads: &source, planes: &afterHeads)
            entries[number].next = start
            start = end
        }
        try readAnchors(anchorCount, counts, heads: &source, planes: &afterHeads)
        guard afterHeads.remaining == payloadBytes else { throw Malformed("its columns don't fill it") }
        payload = raw.count - payloadBytes
        self.raw = raw
        try checkTotals(counts, exits: exits, payloadBytes: payloadBytes)
    }

    private mutating func readDictionary(_ count: Int, from source: inout ByteSource) throws(Malformed) {
        entries.reserveCapacity(count)
        var address: UInt64 = 0
        for _ in 0..<count {
            var shape: UInt64 = 0
            for shift in stride(from: UInt64(0), to: 32, by: 8) { shape |= UInt64(try source.byte()) << shift }
            let repeats = try source.varint()
            guard repeats <= UInt64(UInt32.max) else { throw Malformed("a repeat count of \(repeats)") }
            address &+= UInt64(bitPattern: try source.signed())
            let (identity, form) = try EventIdentity.checked(shape: shape | repeats << 32, address: address)
            entries.append(Entry(identity: identity, form: form, next: 0))
        }
    }

    /// Reads the index and returns how many events each identity has, at least one.
    private mutating func readIndex(_ events: Int, from source: inout ByteSource) throws(Malformed) -> [Int] {
        var counts = [Int](repeating: 0, count: entries.count)
        if entries.count == 1 {
            index = [UInt16](repeating: 0, count: events)
            counts[0] = events
            return counts
        }
        let low = try source.take(events)
        let high = entries.count > 256 ? try source.take(events) : nil
        index = [UInt16](repeating: 0, count: events)
        for event in 0..<events {
            var number = UInt16(source.bytes[low.lowerBound + event])
            if let high { number |= UInt16(source.bytes[high.lowerBound + event]) << 8 }
            guard Int(number) < entries.count else { throw Malformed("it has no identity \(number)") }
            index[event] = number
            counts[Int(number)] += 1
        }
        guard !counts.contains(0) else { throw Malformed("an identity without an event") }
        return counts
    }

    private static func readColumn(
        into values: inout [UInt64], _ range: Range<Int>, heads: inout ByteSource, planes: inout ByteSource
    ) throws(Malformed) {
        let head = try ColumnHead.read(from: &heads, count: range.count)
        let bytes = try planes.take(head.planeBytes(count: range.count))
        planes.bytes.withUnsafeBytes { all in
            values.withUnsafeMutableBufferPointer { values in
                ColumnDecoder.decode(
                    head, planes: UnsafeRawBufferPointer(rebasing: all[bytes]),
                    into: UnsafeMutableBufferPointer(rebasing: values[range]))
            }
        }
    }

    private mutating func readAnchors(
        _ count: Int, _ counts: [Int], heads: inout ByteSource, planes: inout ByteSource
    ) throws(Malformed) {
        var expected = 0
        for (entry, events) in zip(entries, counts) where entry.form.hasAnchor { expected += events }
        guard count == expected else { throw Malformed("\(count) anchors for \(expected) events") }
        guard count > 0 else { return }
        var columns: [[UInt64]] = []
        for _ in AnchorField.allCases {
            var column = [UInt64](repeating: 0, count: count)
            try Self.readColumn(into: &column, 0..<count, heads: &heads, planes: &planes)
            columns.append(column)
        }
        anchors = (0..<count).map {
            Anchor(
                rip: columns[0][$0], registers: columns[1][$0], memory: columns[2][$0],
                instructions: columns[3][$0], elapsed: Nanoseconds(columns[4][$0]))
        }
    }

    private mutating func checkTotals(_ counts: [Int], exits claimed: Int, payloadBytes: Int) throws(Malformed) {
        var total: UInt64 = 0
        for (entry, events) in zip(entries, counts) {
            if entry.identity.kind.isExit { exits += events }
            guard entry.form == .payload else { continue }
            for value in values[entry.next..<(entry.next + events)] {
                guard value <= UInt64(payloadBytes) else { throw Malformed("a payload of \(value) bytes") }
                total += value
            }
        }
        guard total == UInt64(payloadBytes) else { throw Malformed("its payload isn't as long as its events say") }
        guard exits == claimed else { throw Malformed("it has \(exits) exits, not the stated \(claimed)") }
    }
}
