import Foundation
import GRDB
import VMCore

// A row of `checkpoint`. `cpu` is as the caller gave it; `devices` and `pages` are in a *box*: the length before
// compression (varint), then a zstd frame, or the bytes themselves where a frame wouldn't be shorter. In a packed trace
// `cpu` is in a box, too.

/// The name of a checkpoint in its trace: 1, 2, 3 … in the order in which they were taken.
public struct CheckpointID: RawRepresentable, Hashable, Comparable, Codable, Sendable {
    public var rawValue: Int64

    public init(rawValue: Int64) { self.rawValue = rawValue }
    public init(_ rawValue: Int64) { self.rawValue = rawValue }

    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// Digests of a machine state, as hexadecimal text; nil where none was taken.
public struct CheckpointDigests: Hashable, Codable, Sendable {
    public var state: String?
    /// Memory with page-table accessed/dirty bits masked: equal across runs.
    public var memory: String?
    /// Memory to the bit.
    public var strictMemory: String?

    public init(state: String? = nil, memory: String? = nil, strictMemory: String? = nil) {
        self.state = state
        self.memory = memory
        self.strictMemory = strictMemory
    }
}

/// Complete machine state except memory, to be written.
public struct NewCheckpoint: Sendable {
    public var exit: ExitNumber
    /// Where between this exit and the next, in the caller's words; nil right after the exit.
    public var position: Data?
    /// The checkpoint that the pages are given as a difference from; nil: the pages are all that isn't zero.
    public var parent: CheckpointID?
    public var cpu: Data
    public var devices: Data
    public var digests: CheckpointDigests
    /// Host time since the recording began.
    public var wall: Nanoseconds
    /// Machine time.
    public var guest: Nanoseconds
    /// How long the guest stood still for it.
    public var pause: Nanoseconds

    public init(
        exit: ExitNumber, position: Data? = nil, parent: CheckpointID? = nil, cpu: Data, devices: Data,
        digests: CheckpointDigests = CheckpointDigests(), wall: Nanoseconds = Nanoseconds(0),
        guest: Nanoseconds = Nanoseconds(0), pause: Nanoseconds = Nanoseconds(0)
    ) {
        self.exit = exit
        self.position = position
        self.parent = parent
        self.cpu = cpu
        self.devices = devices
        self.digests = digests
        self.wall = wall
        self.guest = guest
        self.pause = pause
    }
}

/// What the table says about a checkpoint, without its state.
public struct CheckpointInfo: Hashable, Sendable {
    public var id: CheckpointID
    public var exit: ExitNumber
    /// Events before it.
    public var event: UInt64
    public var parent: CheckpointID?
    public var wall: Nanoseconds
    public var guest: Nanoseconds
    public var pause: Nanoseconds
    public var digests: CheckpointDigests
    public var position: Data?
    /// Pages given to the writer: those dirtied since the parent.
    public var pagesDirtied: Int
    /// Bytes that it added to the trace, after compression.
    public var bytesStored: Int
}

/// The state in a checkpoint, as it was given to the writer.
public struct CheckpointState: Equatable, Sendable {
    public var cpu: Data
    public var devices: Data
}

/// A checkpoint's row on its way to the table.
struct CheckpointRow {
    var id: Int64
    var event: UInt64
    var checkpoint: NewCheckpoint
    var devices: [UInt8]
    var pages: [UInt8]
    var pagesDirtied: Int
    var bytesStored: Int

    private static let columns = """
        id, exit, event, parent, wall_ns, guest_ns, pause_ns, pages_dirtied, bytes_stored, \
        state_digest, memory_digest, memory_strict_digest, position, digest, cpu, devices, pages
        """

    func insert(into db: Database) throws {
        let (devices, pages) = (Data(devices), Data(pages))
        let marks = Array(repeating: "?", count: 17).joined(separator: ", ")
        let statement = try db.cachedStatement(sql: "INSERT INTO checkpoint(\(Self.columns)) VALUES (\(marks))")
        try statement.execute(arguments: [
            id, Int64(bitPattern: checkpoint.exit.rawValue), Int64(bitPattern: event), checkpoint.parent?.rawValue,
            Int64(bitPattern: checkpoint.wall.rawValue), Int64(bitPattern: checkpoint.guest.rawValue),
            Int64(bitPattern: checkpoint.pause.rawValue), pagesDirtied, bytesStored,
            checkpoint.digests.state, checkpoint.digests.memory, checkpoint.digests.strictMemory,
            checkpoint.position, Self.digest(cpu: checkpoint.cpu, devices: devices, pages: pages), checkpoint.cpu,
            devices, pages,
        ])
    }

    /// The column `digest`.
    static func digest(cpu: Data, devices: Data, pages: Data) -> Int64 {
        Int64(bitPattern: cpu.withUnsafeBytes { cpu in
            devices.withUnsafeBytes { devices in pages.withUnsafeBytes { digest64(cpu, devices, $0) } }
        })
    }

    /// All checkpoints, in the order of their ids.
    static func list(_ db: Database) throws -> [CheckpointInfo] {
        let rows = try Row.fetchCursor(db, sql: """
            SELECT id, exit, event, parent, wall_ns, guest_ns, pause_ns, pages_dirtied, bytes_stored,
                CAST(state_digest AS BLOB), CAST(memory_digest AS BLOB), CAST(memory_strict_digest AS BLOB), position
            FROM checkpoint ORDER BY id
            """)
        var list: [CheckpointInfo] = []
        while let row = try rows.next() {
            var fields = Fields(row, place: "checkpoint")
            let id = try fields.int(0)
            fields.place = "checkpoint \(id)"
            func nanoseconds(_ column: Int) throws -> Nanoseconds {
                Nanoseconds(UInt64(bitPattern: try fields.int(column)))
            }
            func text(_ column: Int) throws -> String? { fields.isNull(column) ? nil : try fields.text(column) }
            let info = CheckpointInfo(
                id: CheckpointID(id), exit: ExitNumber(UInt64(try fields.count(1))),
                event: UInt64(try fields.count(2)), parent: fields.isNull(3) ? nil : CheckpointID(try fields.int(3)),
                wall: try nanoseconds(4), guest: try nanoseconds(5), pause: try nanoseconds(6),
                digests: CheckpointDigests(state: try text(9), memory: try text(10), strictMemory: try text(11)),
                position: fields.isNull(12) ? nil : try fields.blob(12),
                // Below 2^40 each, so that no sum of what a file can hold of them overflows.
                pagesDirtied: try fields.count(7, atMost: 1 << 40), bytesStored: try fields.count(8, atMost: 1 << 40))
            try check(info, after: list)
            list.append(info)
        }
        return list
    }

    /// A checkpoint stands after its parent in the table and in time.
    private static func check(_ info: CheckpointInfo, after list: [CheckpointInfo]) throws(TraceError) {
        let place = "checkpoint \(info.id.rawValue)"
        guard (info.position?.count ?? 0) <= TraceFormat.Limit.position else {
            throw .corrupt(what: "its position is too long", place: place)
        }
        guard let id = info.parent else { return }
        guard let parent = list.find(id) else {
            throw .corrupt(what: "its parent \(id.rawValue) isn't before it", place: place)
        }
        guard parent.exit <= info.exit else {
            throw .corrupt(what: "its parent \(id.rawValue) is at a later exit", place: place)
        }
    }

    /// The three blobs of checkpoint `id`, checked against their digest, boxes still closed.
    static func blobs(_ id: CheckpointID, _ db: Database) throws -> (cpu: Data, devices: Data, pages: Data) {
        let place = "checkpoint \(id.rawValue)"
        guard let row = try Row.fetchOne(
            db, sql: "SELECT digest, cpu, devices, pages FROM checkpoint WHERE id = ?", arguments: [id.rawValue])
        else { throw TraceError.corrupt(what: "it is missing", place: place) }
        let fields = Fields(row, place: place)
        let (cpu, devices, pages) = (try fields.blob(1), try fields.blob(2), try fields.blob(3))
        guard try fields.int(0) == digest(cpu: cpu, devices: devices, pages: pages) else {
            throw TraceError.corrupt(what: "its digest is wrong", place: place)
        }
        return (cpu, devices, pages)
    }
}

extension [CheckpointInfo] {
    /// The checkpoint of this id; they stand in the order of their ids.
    func find(_ id: CheckpointID) -> CheckpointInfo? {
        var (low, high) = (0, count)
        while low < high {
            let middle = (low + high) / 2
            if self[middle].id < id { low = middle + 1 } else { high = middle }
        }
        return low < count && self[low].id == id ? self[low] : nil
    }
}

/// Bytes that are compressed where that helps.
enum Box {
    static func close(_ bytes: [UInt8], _ zstd: ZstdCompressor) throws(TraceError) -> [UInt8] {
        guard bytes.count <= TraceFormat.Limit.state else {
            throw .invalid("a state of \(bytes.count) bytes is more than a checkpoint holds")
        }
        var sink = ByteSink()
        sink.varint(UInt64(bytes.count))
        let frame = try zstd.compress(bytes)
        sink.bytes += frame.count < bytes.count ? frame : bytes
        return sink.bytes
    }

    /// The bytes, at most `limit`.
    static func open(
        _ data: Data, limit: Int = TraceFormat.Limit.state, dictionary: ZstdDictionary? = nil
    ) throws(Malformed) -> [UInt8] {
        var source = ByteSource([UInt8](data))
        let size = try source.count(atMost: limit, of: "bytes of state")
        let rest = source.bytes[(source.bytes.count - source.remaining)...]
        if rest.count == size { return Array(rest) }
        guard rest.count < size else { throw Malformed("its state is longer than stated") }
        return try ZstdDecompressor().decompress(Array(rest), size: size, dictionary: dictionary)
    }
}
