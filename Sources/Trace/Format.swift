/// The format of a trace: one SQLite file, `NAME.vmrr`.
///
/// - `meta`: a key and a JSON text. `start` and `totals` are the format's own, `reserve` is room (below).
/// - `chunk`: up to 64 Ki consecutive events (`ChunkCoding.swift`). `id` is the sequence number of the first,
///   `first_exit` the last exit before it, `digest` the XXH3-64 of `data`. Rows follow one another without a gap.
/// - `checkpoint`: complete machine state at an exit (`Checkpoint.swift`), its pages as a difference from its parent's
///   (`PageMap.swift`). `digest` is the XXH3-64 of `cpu`, `devices` and `pages`, each the seed of the next.
/// - `extent`: up to 16 guest pages, LZ4, or as they are where that is shorter (`Extent.swift`). `digest` is the
///   XXH3-128 of the pages.
/// - `note`: a remark at an exit.
///
/// Version 1 is what recordings are. A *packed* trace, version 2, is the same with `cpu` in a box like `devices`, and
/// with zstd frames in place of LZ4 blocks; these frames, and those of all boxes, are made with the dictionary that
/// `meta` holds under `dictionary` as a BLOB, where there is one. `TracePacker.swift` makes it out of any other.
///
/// Integers that are digests are stored as the signed number with the same bits. Readers take every size, count and
/// digest for a claim. A version change means that older readers would misread the file; new columns and keys with
/// defaults that mean the old behaviour need none.
///
/// What an outsider may find on disk:
///
/// 1. An empty file, or one with a journal and no schema: killed before the first commit. Not a trace yet.
///    The first commit holds the tables and the checkpoint at the start, so there is no trace without a beginning.
/// 2. While recording, or killed between commits: a good trace of all that was committed, without `totals`. It may hold
///    extents that no checkpoint names yet: a checkpoint's pages come before its row. Beside it is
///    `NAME.vmrr-journal`, at most 64 KiB, whose header is zeroed: it says nothing and may be deleted. It is kept so
///    that its room on the disk is there when the disk is full. The last chunk may be replaced by a longer one that
///    begins with the same events; nothing else is ever rewritten, but by a flight recorder.
///    A flight recorder deletes its oldest events, checkpoints and extents, and in the same commit moves `start` and
///    makes the oldest checkpoint complete. The chunk in which that stands stays whole, so a trace's first events may
///    be older than its first checkpoint.
/// 3. Killed inside a commit: the same with a *hot* journal, which belongs to the file. The next opening with leave
///    to write rolls it back, to the state of 2.
/// 4. Finished: `totals` is there, the journal is gone. `totals.failure` says that events were lost, and why.
/// 5. Finished on a full disk: as 4; `reserve` has become the ending.
/// 6. Disk full and not even the ending fitted, or killed while finishing: as 2 or 3.
public enum TraceFormat {
    /// `PRAGMA user_version`. Readers know 1 up to this one.
    public static let version: Int32 = 2
    static let recordedVersion: Int32 = 1
    static let packedVersion: Int32 = 2
    /// `PRAGMA application_id`: "vmrr".
    public static let applicationID: Int32 = 0x766D_7272
    /// The bytes of a guest page.
    public static let pageBytes = 4096

    /// The five tables of a small trace cost a page each and 64 KiB extents still chain well. 512 saved 1 KiB a trace
    /// and cost a fifth more time for checkpoints; 4096 cost 17 KiB a trace.
    static let databasePageBytes = 1024

    /// Bounds that a reader holds a file to, and a writer itself.
    enum Limit {
        /// The longest row SQLite may build, in bytes.
        static let row = 64 << 20
        /// Events of one chunk; their count fits the two-byte sequence column.
        static let chunkEvents = 1 << 16
        /// Payload bytes after which a chunk is cut, and up to which an event still joins a chunk.
        static let chunkPayload = 1 << 20
        /// Payload bytes of one event.
        static let eventPayload = 8 << 20
        static let chunkAnchors = 4096
        /// Bytes of a chunk before compression: everything above with room for the dictionary.
        static let chunkRaw = 16 << 20
        /// Bytes of a dictionary.
        static let dictionary = 1 << 20
        /// Bytes of a meta value or a note.
        static let text = 4 << 20
        /// Bytes of a state or a page map before compression.
        static let state = 48 << 20
        /// Bytes of a checkpoint's position, which the index holds.
        static let position = 1 << 20
        static let pagesPerExtent = 16
        /// Checkpoints from a checkpoint to the complete one its memory rests on.
        static let chain = 1 << 16
        /// Page numbers of any guest: 16 TiB of memory.
        static let pageNumber: UInt64 = 1 << 32
    }

    /// The file's reserve for its own ending, in bytes. A full disk leaves exactly this much room.
    static let reserveBytes = 12 << 10
    /// What the journal keeps of its size after a commit, in bytes. The ending's transaction touches far less.
    static let journalBytes = 64 << 10

    /// The schema, in the words SQLite stores. A file with other words is refused, so nothing in it can run.
    static let schema: [(name: String, sql: String)] = [
        (
            "meta",
            "CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID"
        ),
        (
            "chunk",
            "CREATE TABLE chunk(id INTEGER PRIMARY KEY, first_exit INTEGER, exits INTEGER, events INTEGER, "
                + "raw INTEGER, digest INTEGER, data BLOB)"
        ),
        (
            "checkpoint",
            "CREATE TABLE checkpoint(id INTEGER PRIMARY KEY, exit INTEGER, event INTEGER, parent INTEGER, "
                + "wall_ns INTEGER, guest_ns INTEGER, pause_ns INTEGER, pages_dirtied INTEGER, bytes_stored INTEGER, "
                + "state_digest TEXT, memory_digest TEXT, memory_strict_digest TEXT, position BLOB, digest INTEGER, "
                + "cpu BLOB, devices BLOB, pages BLOB)"
        ),
        (
            "extent",
            "CREATE TABLE extent(id INTEGER PRIMARY KEY, pages INTEGER, digest BLOB, data BLOB)"
        ),
        (
            "note",
            "CREATE TABLE note(id INTEGER PRIMARY KEY, exit INTEGER, kind TEXT, text TEXT)"
        ),
    ]

    /// Meta keys that the format uses itself.
    enum Key {
        static let start = "start"
        static let totals = "totals"
        static let reserve = "reserve"
        static let dictionary = "dictionary"
        static let all: Set<String> = [start, totals, reserve, dictionary]
    }
}

/// Where a trace begins: the meta value `start`.
struct TraceStart: Codable, Equatable, Sendable {
    /// The number of the last exit before the first event.
    var exit: UInt64 = 0
    /// The sequence number of the first event.
    var event: UInt64 = 0
}

/// What a finished recording says it wrote: the meta value `totals`.
public struct TraceTotals: Codable, Equatable, Sendable {
    /// Events in all chunks.
    public var events: UInt64
    /// Exits among them.
    public var exits: UInt64
    /// Why the recording lost its last events; nil where it lost none.
    public var failure: String?
}
