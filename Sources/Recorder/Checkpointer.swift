import Foundation
import Trace
import VMCore

/// Takes checkpoints on the vCPU's thread: finds out what was written, copies it, reads the processor.
///
/// All else, from hashing on, happens on a thread of its own.
final class Checkpointer {
    private let thread: CheckpointThread
    private let writes: WriteLog.Follower
    private let oracle: MemoryOracle?
    private let start = hostTime()
    /// Whether the guest stands still while the thread works, since there is no other processor.
    private let isAlone = ProcessInfo.processInfo.activeProcessorCount == 1
    /// Whether KVM itself is emulated. Each page that was taken faults when it is written next, in the guest's time, and that is
    /// as dear there as taking it: in the lab, checkpoints whose own time was 5 % of a recording made it 9 % longer.
    private let faultsAreDear: Bool

    /// `digests` are those of the machine's memory, which the writer's last checkpoint has as it is. `checksWrites`
    /// has every checkpoint compared with all of memory, which costs a copy of it and a lot of time.
    init(machine: Machine, writer: TraceWriter, digests: MemoryDigestTable, checksWrites: Bool) throws {
        let memory = machine.engine.memory
        faultsAreDear = machine.engine.capabilities.entersSlowly
        writes = try machine.writes.get().follow()
        oracle = checksWrites ? try MemoryOracle(memory: memory) : nil
        thread = CheckpointThread(writer: writer, digests: digests, map: memory.map)
    }

    deinit { writes.cancel() }

    /// Takes a checkpoint of the settled guest right after its last exit; returns how long checkpoints have kept it from running
    /// since the last call: this one, and all work on those before it where that took the same processor, and what follows from it.
    func take(of machine: Machine, devices: Platform, event: UInt64, guest: Nanoseconds) throws -> Nanoseconds {
        let began = hostTime()
        let memory = machine.engine.memory
        var moment = CheckpointMoment(exit: machine.exit, event: event, cpu: try machine.engine.state(),
                                      devices: devices, wall: began - start, guest: guest, pause: Nanoseconds(0))
        var block: PageBlock?
        var written: [Int] = []
        try writes.take { page in
            if oracle != nil { written.append(page) }
            let target = block ?? thread.takeBlock()
            target.append(memory.page(page), number: page)
            block = target
            if target.isFull {
                thread.send(target)
                block = nil
            }
        }
        if let block { thread.send(block) }
        moment.pause = hostTime() - began
        thread.send(moment)
        try oracle?.check(written)
        let spent = isAlone ? moment.pause + thread.takeSpent() : moment.pause
        return faultsAreDear ? spent + spent : spent
    }

    /// Waits until all checkpoints are with the writer.
    func finish() { thread.finish() }
}

/// The slow way to know which pages were written: a copy of all memory, compared with it page by page.
final class MemoryOracle {
    /// A page changed without having been reported as written.
    struct Missed: Error, CustomStringConvertible {
        var page: Int
        var description: String { "page \(page) of the memory file changed, but wasn't reported as written" }
    }

    private let memory: GuestMemory
    private var copy: [UInt8]

    init(memory: GuestMemory) throws {
        self.memory = memory
        copy = Array(repeating: 0, count: Int(memory.map.fileBytes))
        memory.forEachTouchedPage { take($0) }
    }

    private func take(_ page: Int) {
        copy.withUnsafeMutableBytes { ($0.baseAddress! + page * pageSize).copyMemory(from: memory.page(page).baseAddress!, byteCount: pageSize) }
    }

    /// Compares all memory with what it was at the last check and `written` since.
    func check(_ written: [Int]) throws {
        for page in written { take(page) }
        try memory.forEachTouchedPage { page in
            let same = copy.withUnsafeBytes { copy in
                memory.page(page).elementsEqual(UnsafeRawBufferPointer(rebasing: copy[(page * pageSize)...].prefix(pageSize)))
            }
            if !same { throw Missed(page: page) }
        }
    }
}
