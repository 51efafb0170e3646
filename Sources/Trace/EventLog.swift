import Dispatch
import Synchronization
import VMCore

/// Room for the events of one chunk: the unsafe corner between the vCPU thread and the writer's.
///
/// One thread, the producer, appends and publishes; the other reads below the published count. What is published is
/// never touched again until the consumer has given the buffer back. That is the whole of the synchronisation: a
/// release store for each event, and no lock, so that the tail of a guest that went quiet can be read at any time.
final class EventBuffer: @unchecked Sendable {
    let records = UnsafeMutablePointer<EventRecord>.allocate(capacity: TraceFormat.Limit.chunkEvents)
    let anchors = UnsafeMutablePointer<Anchor>.allocate(capacity: TraceFormat.Limit.chunkAnchors)
    /// Replaced by a larger one only while nothing is published, so the consumer can't be looking at it.
    private(set) var payload = UnsafeMutableRawPointer.allocate(
        byteCount: TraceFormat.Limit.chunkPayload, alignment: 16)
    private(set) var payloadCapacity = TraceFormat.Limit.chunkPayload

    /// Events that the consumer may read.
    let published = UnsafeMutablePointer<Atomic<Int>>.allocate(capacity: 1)
    /// Set by the producer when it has gone on to the next buffer, cleared by the consumer when it gives this one back.
    let sealed = Atomic<Bool>(false)

    init() { published.initialize(to: Atomic(0)) }

    deinit {
        records.deallocate()
        anchors.deallocate()
        payload.deallocate()
        published.deinitialize(count: 1)
        published.deallocate()
    }

    /// Producer only, with nothing published.
    func makeRoom(payload bytes: Int) {
        guard bytes > payloadCapacity else { return }
        payload.deallocate()
        payload = .allocate(byteCount: bytes, alignment: 16)
        payloadCapacity = bytes
    }
}

/// The producer's end: everything an append touches, in one place that needs no exclusivity checks.
struct EventHead {
    var records: UnsafeMutablePointer<EventRecord>
    var published: UnsafeMutablePointer<Atomic<Int>>
    /// Events, payload bytes and anchors in the current buffer.
    var count = 0
    var payloadCount = 0
    var anchorCount = 0
    /// Events and exits in all.
    var events: UInt64 = 0
    var exits: UInt64

    init(_ buffer: EventBuffer, events: UInt64, exits: UInt64) {
        records = buffer.records
        published = buffer.published
        self.events = events
        self.exits = exits
    }

    mutating func turn(to buffer: EventBuffer) {
        self = EventHead(buffer, events: events, exits: exits)
    }

    /// Appends where there is room.
    @inline(__always)
    mutating func push(_ record: EventRecord) {
        records[count] = record
        count += 1
        events &+= 1
        if record.isExit { exits &+= 1 }
        published.pointee.store(count, ordering: .releasing)
    }
}

/// A ring of event buffers with a producer and a consumer, bounded: when all are full the producer waits.
final class EventLog: Sendable {
    /// Four: one being filled, one being compressed, two to ride out a slow disk. 2.5 MiB each, more with payloads.
    static let buffers = 4

    let ring: [EventBuffer]
    /// Signalled when the consumer has something to do before its next look.
    let work = DispatchSemaphore(value: 0)
    /// Counts buffers that the producer may take.
    private let free: DispatchSemaphore

    init() {
        ring = (0..<Self.buffers).map { _ in EventBuffer() }
        free = DispatchSemaphore(value: Self.buffers - 1)
    }

    /// Producer: hands over buffer `number`, waits for the next to be free and returns its number.
    func seal(_ number: Int) -> Int {
        ring[number].sealed.store(true, ordering: .releasing)
        work.signal()
        free.wait()
        return (number + 1) % Self.buffers
    }

    /// Consumer: gives back buffer `number`, all of which it has read; returns the number of the next.
    func release(_ number: Int) -> Int {
        ring[number].published.pointee.store(0, ordering: .relaxed)
        ring[number].sealed.store(false, ordering: .relaxed)
        free.signal()
        return (number + 1) % Self.buffers
    }
}
