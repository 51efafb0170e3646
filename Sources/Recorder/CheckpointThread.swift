import Dispatch
import Foundation
import Synchronization
import Trace
import VMCore

/// Pages on their way from the vCPU's thread to the one that stores them.
///
/// Whoever has the block owns its content: the vCPU's thread fills it, hands it over and gets it back empty.
final class PageBlock: @unchecked Sendable {
    static let capacity = 64
    /// Numbers of the pages in the memory file. Invariant: `numbers.count` pages of `bytes` are filled.
    private(set) var numbers: [Int] = []
    private let bytes = UnsafeMutableRawPointer.allocate(byteCount: capacity * pageSize, alignment: pageSize)

    init() { memset(bytes, 0, Self.capacity * pageSize) }
    deinit { bytes.deallocate() }

    var isFull: Bool { numbers.count == Self.capacity }

    func append(_ page: UnsafeRawBufferPointer, number: Int) {
        precondition(!isFull && page.count == pageSize)
        (bytes + numbers.count * pageSize).copyMemory(from: page.baseAddress!, byteCount: pageSize)
        numbers.append(number)
    }

    func content(_ index: Int) -> UnsafeRawBufferPointer {
        precondition(index < numbers.count)
        return UnsafeRawBufferPointer(start: bytes + index * pageSize, count: pageSize)
    }

    func clear() { numbers.removeAll(keepingCapacity: true) }
}

/// Everything of a checkpoint but its pages, as the vCPU's thread found it.
struct CheckpointMoment: Sendable {
    var exit: ExitNumber
    /// Events before it.
    var event: UInt64
    var cpu: CPUState
    var devices: Platform
    var wall: Nanoseconds
    var guest: Nanoseconds
    var pause: Nanoseconds
}

/// The thread that hashes, compresses and stores checkpoints while the guest runs on.
///
/// Memory: 8 MiB of blocks at most, used from the hottest on. A checkpoint of more pages waits for blocks to come back.
final class CheckpointThread: @unchecked Sendable {
    private static let blocks = 32
    /// Blocks that the thread makes when it starts, so that the guest doesn't stand still while the kernel finds pages
    /// for them: that takes longer than copying.
    private static let readyBlocks = 16

    private enum Item: Sendable {
        case pages(PageBlock)
        case complete(CheckpointMoment)
        case stop
    }

    private struct Shared {
        var queue: [Item] = []
        var idle: [PageBlock] = []
    }

    private let writer: TraceWriter
    private let shared = Mutex(Shared())
    private let work = DispatchSemaphore(value: 0)
    /// Counts blocks that are idle or not made yet.
    private let free = DispatchSemaphore(value: blocks)
    private let done = DispatchSemaphore(value: 0)
    /// The thread's own, as are the two that follow.
    private let digests: MemoryDigestTable
    private let map: MemoryLayoutMap
    private let encoder = JSONEncoder()
    /// Nanoseconds of processor time that the thread has taken.
    private let spent = Atomic<UInt64>(0)

    /// `digests` are those of memory as the writer's last checkpoint has it. They are the thread's from now on.
    init(writer: TraceWriter, digests: MemoryDigestTable, map: MemoryLayoutMap) {
        self.writer = writer
        self.digests = digests
        self.map = map
        let thread = Thread { [self] in run() }
        thread.name = "vmrr-checkpoint"
        thread.start()
    }

    // MARK: For the vCPU's thread

    /// Processor time that the thread has taken since the last call.
    func takeSpent() -> Nanoseconds { Nanoseconds(spent.exchange(0, ordering: .relaxed)) }

    /// An empty block; waits for one where all are on their way.
    func takeBlock() -> PageBlock {
        free.wait()
        return shared.withLock { $0.idle.popLast() } ?? PageBlock()
    }

    func send(_ block: PageBlock) { send(.pages(block)) }
    func send(_ moment: CheckpointMoment) { send(.complete(moment)) }

    private func send(_ item: Item) {
        shared.withLock { $0.queue.append(item) }
        work.signal()
    }

    /// Stores what is on its way and ends the thread.
    func finish() {
        send(.stop)
        done.wait()
    }

    // MARK: The thread

    private func run() {
        let ready = (0..<Self.readyBlocks).map { _ in PageBlock() }
        shared.withLock { $0.idle += ready }
        var last = threadTime()
        while true {
            work.wait()
            defer {
                let now = threadTime()
                spent.add((now - last).rawValue, ordering: .relaxed)
                last = now
            }
            switch shared.withLock({ $0.queue.removeFirst() }) {
            case .pages(let block):
                store(block)
                block.clear()
                shared.withLock { $0.idle.append(block) }
                free.signal()
            case .complete(let moment):
                store(moment)
            case .stop:
                done.signal()
                return
            }
        }
    }

    /// After a failure, which the writer tells the vCPU's thread, what comes is dropped.
    private func store(_ block: PageBlock) {
        guard writer.failure == nil else { return }
        for (index, number) in block.numbers.enumerated() {
            let content = block.content(index)
            digests.update(page: number, content: content)
            guard let address = map.address(ofFilePage: number), let bytes = content.baseAddress else { continue }
            do { try writer.addPage(address.rawValue / UInt64(pageSize), bytes) } catch { return }
        }
    }

    private func store(_ moment: CheckpointMoment) {
        guard writer.failure == nil else { return }
        let encoded = moment.cpu.encoded()
        let digests = CheckpointDigests(
            state: encoded.withUnsafeBytes { Digest128(of: $0) }.description, memory: self.digests.masked.description,
            strictMemory: self.digests.strict.description)
        do {
            let devices = try encoder.encode(moment.devices)
            try writer.addCheckpoint(
                NewCheckpoint(exit: moment.exit, cpu: Data(encoded), devices: devices, digests: digests,
                              wall: moment.wall, guest: moment.guest, pause: moment.pause),
                event: moment.event)
        } catch {
            // A TraceError is the writer's, who has noted it; devices always have an encoding.
        }
    }
}
