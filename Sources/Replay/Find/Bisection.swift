import Foundation
import Trace
import VMCore

/// Finds the first exit at which something holds, by halving: over checkpoints, then over exits, then by stepping
/// through the instructions of the last exit interval.
public final class Bisection {
    public enum Question: Sendable {
        case predicate(GuestPredicate)
        /// A shell command, after git-bisect's convention: status 0 is good, 1 to 127 bad, 125 can't tell.
        case command(String)
    }

    public struct Options: Sendable {
        public var from: ExitNumber?
        public var to: ExitNumber?
        /// Ask at every exit, and not by halving.
        public var isExhaustive = false
        public var symbols = SymbolTable()

        public init() {}
    }

    private enum Answer { case good, bad, unknown }

    private let timeline: Timeline
    private let question: Question
    private let options: Options
    private let transcript: Transcript
    private var baseline = GuestPredicate.Baseline()
    private var unknown: Set<ExitNumber> = []
    private var asked = 0
    private var replays = 0
    /// Told what is being done, and how much of it, 0 to 1.
    public var progress: ((String, Double) -> Void)?

    /// Checkpoints at which the answer is compared with the result, to notice one that changes more than once.
    private static let samples = 16
    /// Places between two checkpoints at which a replay that passes is asked.
    private static let legs: UInt64 = 32
    /// Instructions that are stepped through; some seconds' worth.
    private static let mostInstructions: UInt64 = 20_000_000
    /// Changes of the answer that an exhaustive search lists.
    private static let listedFlips = 100

    public init(_ timeline: Timeline, question: Question, options: Options) {
        self.timeline = timeline
        self.question = question
        self.options = options
        transcript = Transcript(timeline.reader)
    }

    /// - Throws: `FindError`, and whatever a replay throws.
    public func run() throws -> BisectResult {
        let started = hostTime()
        let before = timeline.statistics
        if case .predicate(let predicate) = question { try transcript.prepare(for: predicate) }
        var good = max(options.from ?? timeline.first, timeline.first)
        var bad = min(options.to ?? timeline.last, timeline.last)
        guard good < bad else { throw FindError.noRange(good, bad) }
        let range = good...bad
        var result = BisectResult(first: bad, lastGood: good)
        progress?("looking at both ends", 0)
        try checkStart(good)
        if isScan {
            result.flips = try scan(from: good, to: bad)
            result.isExhaustive = true
            guard let first = result.flips.first else { throw FindError.neverHolds(bad, failure) }
            (good, bad) = (ExitNumber(first.rawValue - 1), first)
        } else {
            try checkEnd(bad)
            let checkpoints = timeline.checkpointExits.filter { $0 > good && $0 < bad }
            result.checkpoints = checkpoints.count
            try narrow(&good, &bad, checkpoints.count) { checkpoints[$0] }
            result.exits = bad.rawValue - good.rawValue
            try walk(&good, &bad)
            let first = good.rawValue + 1
            try narrow(&good, &bad, Int(bad.rawValue - first)) { ExitNumber(first + UInt64($0)) }
            // The candidates are numbered from the lower bound as it was, so what is left is what nobody could tell.
            result.unknown = unknown.filter { $0 > good && $0 < bad }.sorted()
        }
        (result.first, result.lastGood) = (bad, good)
        result.event = try transcript.event(at: bad)
        try findInstruction(&result)
        try findInterrupt(&result)
        if !isScan { result.contradictions = try sample(around: bad, within: range) }
        result.exitsReplayed = timeline.statistics.exits - before.exits
        (result.asked, result.replays) = (asked, replays)
        result.seconds = (hostTime() - started).seconds
        return result
    }

    // MARK: Asking

    private func checkStart(_ good: ExitNumber) throws {
        if case .predicate(let predicate) = question {
            if predicate.needs.contains(.guest) { try go(to: good) }
            baseline = try predicate.baseline(at: transcript.moment(at: good, guest: timeline, for: predicate))
        }
        switch try ask(good) {
        case .good: break
        case .bad: throw FindError.holdsAtStart(good, isCommand ? "the command says bad" : "the predicate holds")
        case .unknown:
            throw FindError.command("the command can't tell (125) at exit \(good.rawValue), where the search begins")
        }
    }

    private func checkEnd(_ bad: ExitNumber) throws {
        switch try ask(bad) {
        case .bad: break
        case .good: throw FindError.neverHolds(bad, failure)
        case .unknown:
            throw FindError.command("the command can't tell (125) at exit \(bad.rawValue), where the search ends")
        }
    }

    private var failure: String { isCommand ? "the command says good" : "the predicate doesn't hold" }

    /// A predicate about events alone is asked at every exit: that takes no replay, and it may hold at one exit only.
    private var isScan: Bool {
        if case .predicate(let predicate) = question, !predicate.needs.contains(.guest) { return true }
        return options.isExhaustive
    }

    private var isCommand: Bool { if case .command = question { true } else { false } }

    private func ask(_ exit: ExitNumber) throws -> Answer {
        asked += 1
        switch question {
        case .predicate(let predicate):
            if predicate.needs.contains(.guest) { try go(to: exit) }
            return try holds(predicate, after: exit) ? .bad : .good
        case .command(let command):
            try go(to: exit)
            var state = StateOptions()
            state.symbols = options.symbols
            let report = try StateReport(
                timeline, at: timeline.position, platform: timeline.platform,
                transcript: transcript, options: state)
            let status = try ShellCommand(command, environment: ["VMRR_EXIT": "\(exit.rawValue)"])
                .run(input: report.json.text() + "\n")
            switch status {
            case 0: return .good
            case 125: return .unknown
            case 1...127: return .bad
            default:
                throw FindError.command(
                    "the command ended with status \(status) at exit \(exit.rawValue), so the "
                        + "search ends: 0 is good, 1 to 127 bad, 125 can't tell")
            }
        }
    }

    private func go(to exit: ExitNumber) throws {
        let before = timeline.statistics
        try timeline.seek(to: exit)
        // To restore a checkpoint, or a state that was kept, is no replay, and to go on from where it stood is none more.
        let after = timeline.statistics
        if after.exits > before.exits, after.replays > before.replays { replays += 1 }
    }

    private func holds(_ predicate: GuestPredicate, after exit: ExitNumber) throws -> Bool {
        try predicate.holds(at: transcript.moment(at: exit, guest: timeline, for: predicate), since: baseline)
    }

    // MARK: Halving

    /// Moves the two bounds together until none of the candidates, which are ascending, lies between them; where the
    /// answer is unknown the nearest candidates are asked instead.
    private func narrow(
        _ good: inout ExitNumber, _ bad: inout ExitNumber, _ count: Int,
        _ candidate: (Int) -> ExitNumber
    ) throws {
        var (low, high) = (0, count)
        search: while low < high {
            let middle = low + (high - low) / 2
            progress?("bisecting exits \(good.rawValue) to \(bad.rawValue)", 1 - Double(high - low) / Double(count))
            for distance in 0...(high - low) {
                for index in distance == 0 ? [middle] : [middle - distance, middle + distance] {
                    guard index >= low, index < high, !unknown.contains(candidate(index)) else { continue }
                    switch try ask(candidate(index)) {
                    case .good: (good, low) = (candidate(index), index + 1)
                    case .bad: (bad, high) = (candidate(index), index)
                    case .unknown:
                        unknown.insert(candidate(index))
                        continue
                    }
                    continue search
                }
            }
            return
        }
    }

    /// Replays once from the last good exit on, and asks in a few places on the way: to halve what lies between two
    /// checkpoints would replay two thirds of it on average, and this half.
    private func walk(_ good: inout ExitNumber, _ bad: inout ExitNumber) throws {
        guard case .predicate(let predicate) = question, bad.rawValue - good.rawValue > Self.legs * 4 else { return }
        let (start, leg) = (good.rawValue, (bad.rawValue - good.rawValue) / Self.legs)
        try go(to: good)
        try timeline.keep()
        replays += 1
        while bad.rawValue - good.rawValue > leg {
            let next = ExitNumber(good.rawValue + leg)
            try timeline.play(to: next)
            asked += 1
            if try holds(predicate, after: next) {
                bad = next
                return
            }
            good = next
            try timeline.keep()
            progress?(
                "replaying exits \(start) to \(bad.rawValue)",
                Double(good.rawValue - start) / Double(bad.rawValue - start))
        }
    }

    /// Asks at every exit; the exits at which the answer differs from the one before.
    private func scan(from good: ExitNumber, to bad: ExitNumber) throws -> [ExitNumber] {
        var flips: [ExitNumber] = []
        var last = Answer.good
        var exit = good
        while exit < bad {
            exit = exit.next
            let answer = try ask(exit)
            if answer != .unknown, answer != last {
                last = answer
                if flips.count < Self.listedFlips { flips.append(exit) }
            }
            if exit.rawValue & 0x3FF == 0 {
                progress?(
                    "asking at every exit", Double(exit.rawValue - good.rawValue) / Double(bad.rawValue - good.rawValue)
                )
            }
        }
        return flips
    }

    /// The checkpoints at which the answer isn't what it should be if it changed once. To look at one takes no replay.
    private func sample(around first: ExitNumber, within range: ClosedRange<ExitNumber>) throws -> [ExitNumber] {
        guard case .predicate(let predicate) = question else { return [] }
        let exits = timeline.checkpointExits.filter { range.contains($0) }
        let step = max(1, exits.count / Self.samples)
        return try stride(from: 0, to: exits.count, by: step).map { exits[$0] }.filter { exit in
            if predicate.needs.contains(.guest) { try go(to: exit) }
            return try holds(predicate, after: exit) != (exit >= first)
        }
    }

    // MARK: The instruction

    private func findInstruction(_ result: inout BisectResult) throws {
        guard case .predicate(let predicate) = question, result.unknown.isEmpty else { return }
        progress?("stepping through the instructions before exit \(result.first.rawValue)", 0)
        var last: TraceEvent?
        do {
            try go(to: result.lastGood)
            try timeline.forEachInstruction(to: result.first) { instruction, entered in
                if let entered, entered.isInterrupt { last = entered }
                result.instruction = instruction
                if instruction.position.exit == result.first { return false }
                guard instruction.position.instructions < Self.mostInstructions else {
                    result.instruction = nil
                    result.obstacle =
                        "the guest executes more than \(Self.mostInstructions) instructions before the exit"
                    return false
                }
                return try !holds(predicate, after: instruction.position.exit)
            }
            result.interrupt = last
        } catch HostError.cannotLand(let reason) {
            result.instruction = nil
            result.obstacle = reason
        }
    }

    /// The last interrupt that entered before the condition held.
    private func findInterrupt(_ result: inout BisectResult) throws {
        result.entered = try transcript.events(after: result.lastGood).filter(\.isInterrupt)
        // Those after the last good exit count only where it is known that they came before the instruction.
        guard result.interrupt == nil else { return }
        var cursor = timeline.reader.cursor()
        try cursor.seek(to: result.lastGood)
        result.interrupt = try timeline.reader.lastInterrupt(beforeEvent: cursor.sequence)
    }
}
