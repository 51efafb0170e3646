import Foundation
import Trace
import VMCore

/// The first checkpoint of two recordings at which their memory differs.
public struct CheckpointDifference {
    public let exit: ExitNumber
    private let memory: MemoryDifference
    /// Guest page numbers, ascending.
    public var pages: [UInt64] { memory.pages }

    /// Nil where no checkpoint's memory differs. Goes by halving, on the grounds that memories that have come to differ
    /// stay so; `from` is an exit up to which they are known to be equal but for their start.
    public init?(_ a: Timeline, _ b: Timeline, from: ExitNumber, progress: (Double) -> Void = { _ in }) throws {
        let last = min(a.last, b.last)
        let first = max(a.first, b.first)
        guard first <= last else { return nil }
        func compare(_ exit: ExitNumber) throws -> MemoryDifference? {
            try a.seek(to: exit)
            try b.seek(to: exit)
            let memory = MemoryDifference(a.memory, b.memory, masked: true, ignoring: [])
            return memory.pages.isEmpty ? nil : memory
        }
        if let memory = try compare(first) {
            (exit, self.memory) = (first, memory)
            return
        }
        let exits = Set(a.checkpointExits + b.checkpointExits + [last]).filter { $0 > from && $0 <= last }.sorted()
        var (low, high) = (0, exits.count)
        var found: MemoryDifference?
        while low < high {
            let middle = (low + high) / 2
            progress(1 - Double(high - low) / Double(exits.count))
            if let memory = try compare(exits[middle]) { (high, found) = (middle, memory) } else { low = middle + 1 }
        }
        guard let found else { return nil }
        (exit, memory) = (exits[high], found)
    }

    public func lines(_ style: Style) -> [String] {
        let shown = 16
        let runs = memory.pageRuns
        return [
            style.heading(
                "@@ memory differs at exit \(exit.rawValue): \(memory.bytes) bytes in \(memory.pages.count) pages @@")
        ]
            + runs.prefix(shown).map {
                " pages \(hex($0.first * UInt64(pageSize)))–\(hex(($0.first + $0.count) * UInt64(pageSize) - 1))"
            }
            + (runs.count > shown ? [" … \(runs.count) runs of pages"] : [])
    }

    public var json: JSON {
        [
            "exit": JSON(exit.rawValue), "pages": JSON(memory.pages.count), "bytes": JSON(memory.bytes),
            "runs": .array(
                memory.pageRuns.map { ["address": JSON($0.first * UInt64(pageSize)), "pages": JSON($0.count)] }),
        ]
    }
}
