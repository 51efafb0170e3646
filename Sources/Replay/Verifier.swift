import Dispatch
import Foundation
import Synchronization
import Trace
import VMCore

/// Replays the intervals between a trace's checkpoints independently of one another, each from its own checkpoint and
/// against the digests of the next.
public struct Verifier: Sendable {
    /// From a checkpoint to the next, or to the end.
    public struct Interval: Sendable {
        /// From 0, in the order of exits.
        public var number: Int
        public var checkpoint: CheckpointInfo
        /// Nil for the last interval, which goes to the end of the trace.
        public var next: CheckpointInfo?
        public var start: ExitNumber { checkpoint.exit }
        public var end: ExitNumber
    }

    /// What is wrong with an interval.
    public enum Fault: Sendable {
        case divergence(Divergence)
        /// The trace can't be read there.
        case damage(TraceError)
        /// This host can't replay it.
        case host(String)
    }

    /// What came of an interval.
    public struct Outcome: Sendable {
        public var interval: Interval
        public var fault: Fault?
        /// Whether the state at its end was compared with a recorded one.
        public var isCompared = false
        /// Whether memory at its end differs, but only in page-table accessed/dirty bits.
        public var hasNoise = false
    }

    /// A part of the intervals: the `index`th, from 0, of `count` that are of about the same size.
    public struct Shard: Sendable, CustomStringConvertible {
        public var index: Int
        public var count: Int
        public static let all = Self(index: 0, count: 1)

        private init(index: Int, count: Int) { (self.index, self.count) = (index, count) }

        /// Parses `i/n` with 0 <= i < n; nil for anything else.
        public init?(_ text: String) {
            let parts = text.split(separator: "/", omittingEmptySubsequences: false).map { decimal(String($0)) }
            guard parts.count == 2, let index = parts[0], let count = parts[1], index < count, count <= 1 << 20 else {
                return nil
            }
            self.init(index: Int(index), count: Int(count))
        }

        public var description: String { "\(index)/\(count)" }
    }

    private let reader: TraceReader
    private let host: EngineHost
    /// All intervals of the trace.
    public let intervals: [Interval]

    public init(reader: TraceReader, host: EngineHost) throws {
        (self.reader, self.host) = (reader, host)
        let checkpoints = Timeline.restorable(reader.checkpoints)
        guard !checkpoints.isEmpty else {
            throw TraceError.corrupt(what: "the state at its start is missing", place: "checkpoint")
        }
        intervals = checkpoints.indices.map { i in
            let next = i + 1 < checkpoints.count ? checkpoints[i + 1] : nil
            return Interval(number: i, checkpoint: checkpoints[i], next: next, end: next?.exit ?? reader.lastExit)
        }
    }

    public func intervals(of shard: Shard) -> ArraySlice<Interval> {
        intervals[(intervals.count * shard.index / shard.count)..<(intervals.count * (shard.index + 1) / shard.count)]
    }

    /// Verifies a shard on `jobs` threads, each with a machine of its own.
    ///
    /// - Parameters:
    ///   - started: given something that ends it from any thread.
    ///   - progress: told how much is done, 0 to 1, a few times a second, on this thread.
    /// - Returns: the outcomes in the order of the intervals; without those that a stop has prevented.
    public func verify(_ shard: Shard = .all, jobs: Int, started: (@escaping @Sendable () -> Void) -> Void = { _ in },
                       progress: (Double) -> Void = { _ in }) -> [Outcome] {
        let work = Work(intervals(of: shard))
        started { work.stop() }
        let done = DispatchSemaphore(value: 0)
        let count = max(1, min(jobs, work.intervals.count))
        for _ in 0..<count {
            let thread = Thread {
                run(work)
                done.signal()
            }
            thread.stackSize = 4 << 20
            thread.start()
        }
        for _ in 0..<count {
            while done.wait(timeout: .now() + .milliseconds(100)) == .timedOut { progress(work.fraction) }
        }
        return work.outcomes
    }

    /// What the threads share.
    private final class Work: Sendable {
        let intervals: [Interval]
        private let next = Atomic<Int>(0)
        private let exits = Atomic<UInt64>(0)
        private let total: UInt64
        private let state = Mutex((outcomes: [Outcome](), stoppers: [@Sendable () -> Void](), isStopped: false))

        init(_ intervals: ArraySlice<Interval>) {
            self.intervals = Array(intervals)
            total = intervals.reduce(1) { $0 + $1.end.rawValue - $1.start.rawValue }
        }

        /// The next interval that nobody has taken; nil when there is none, or all is to end.
        func take() -> Interval? {
            if state.withLock({ $0.isStopped }) { return nil }
            let index = next.wrappingAdd(1, ordering: .relaxed).oldValue
            return index < intervals.count ? intervals[index] : nil
        }

        func add(_ outcome: Outcome) { state.withLock { $0.outcomes.append(outcome) } }
        func add(exits count: UInt64) { exits.wrappingAdd(count, ordering: .relaxed) }
        var fraction: Double { Double(exits.load(ordering: .relaxed)) / Double(total) }
        var outcomes: [Outcome] {
            state.withLock { $0.outcomes }.sorted { $0.interval.number < $1.interval.number }
        }

        /// Has `stopper` called when all is to end, if need be at once.
        func add(stopper: @escaping @Sendable () -> Void) {
            let isLate = state.withLock {
                $0.stoppers.append(stopper)
                return $0.isStopped
            }
            if isLate { stopper() }
        }

        func stop() {
            let stoppers = state.withLock {
                $0.isStopped = true
                return $0.stoppers
            }
            for stopper in stoppers { stopper() }
        }
    }

    /// One thread's part.
    private func run(_ work: Work) {
        var timeline: Timeline?
        while let interval = work.take() {
            var outcome = Outcome(interval: interval)
            var count: UInt64 = 0
            do {
                let machine: Timeline
                if let timeline {
                    machine = timeline
                } else {
                    machine = try Timeline(unopened: reader, host: host)
                    work.add(stopper: machine.stopper)
                    timeline = machine
                }
                machine.observe = { _ in
                    count += 1
                    if count & 0xFFF == 0 { work.add(exits: 0x1000) }
                }
                try verify(interval, with: machine, &outcome)
            } catch is Timeline.Stopped {
                return
            } catch let divergence as Divergence {
                outcome.fault = .divergence(divergence)
            } catch let error as TraceError {
                outcome.fault = .damage(error)
            } catch {
                outcome.fault = .host("\(error)")
            }
            // All of the interval is done, also where it ended early.
            work.add(exits: interval.end.rawValue - interval.start.rawValue - (count & ~0xFFF))
            work.add(outcome)
        }
    }

    private func verify(_ interval: Interval, with timeline: Timeline, _ outcome: inout Outcome) throws {
        try timeline.open(interval.checkpoint)
        // A checkpoint that isn't what was recorded misleads its own interval, and not the one before.
        let name = "checkpoint \(interval.checkpoint.id.rawValue)"
        _ = try timeline.compare(with: interval.checkpoint.digests, "in \(name)")
        try timeline.play(to: interval.next?.exit)
        let digests: CheckpointDigests
        if let next = interval.next {
            digests = next.digests
        } else {
            guard let recorded = timeline.ending?.digests else { return }
            digests = CheckpointDigests(recorded)
        }
        let place = interval.next.map { "in checkpoint \($0.id.rawValue)" } ?? "at the end"
        outcome.hasNoise = try timeline.compare(with: digests, place)
        outcome.isCompared = digests.state != nil && digests.memory != nil
    }
}

extension CheckpointDigests {
    public init(_ digests: MachineDigests) {
        self.init(state: digests.state.description, memory: digests.memory.description,
                  strictMemory: digests.memoryStrict.description)
    }
}

extension Timeline {
    /// Compares the state here with recorded digests; a difference is thrown as `Divergence`. `place` says where they
    /// come from.
    ///
    /// - Returns: whether memory differs, but only in page-table accessed/dirty bits.
    func compare(with expected: CheckpointDigests, _ place: String) throws -> Bool {
        let actual = CheckpointDigests(try digests())
        if let state = expected.state, state != actual.state {
            throw Divergence(exit: position.exit, expected: "state digest \(state) \(place)", actual: actual.state ?? "")
        }
        if let memory = expected.memory, memory != actual.memory {
            throw Divergence(exit: position.exit, expected: "memory digest \(memory) \(place)", actual: actual.memory ?? "")
        }
        return expected.strictMemory.map { $0 != actual.strictMemory } ?? false
    }
}
