import Trace
import VMCore

/// What can be seen of a guest that stands still.
public protocol GuestView {
    /// The general, segment and control registers: a cheap part of `state`.
    func registers() throws -> CoreRegisters
    func state() throws -> CPUState
    var memory: GuestMemory { get }
}

/// What a predicate is asked about: a guest after an exit, or an event of a trace alone.
public struct Moment {
    /// The exit that the guest completed last.
    public var exit: ExitNumber
    /// That exit, or the event that is asked about; nil at the start.
    public var event: TraceEvent?
    /// Nil where there is only the trace.
    public var guest: (any GuestView)?
    /// What the guest had printed, and whether it had failed.
    public var transcript: Transcript?

    public init(exit: ExitNumber, event: TraceEvent?, guest: (any GuestView)?, transcript: Transcript?) {
        self.exit = exit
        self.event = event
        self.guest = guest
        self.transcript = transcript
    }
}

/// A condition on one moment of a guest, in the language of docs/predicates.md.
///
/// A number may be missing: memory that isn't mapped, the port of an exit that has none. What is computed from it is
/// missing too, `&&` and `||` go by what the other side says, and a condition that is missing doesn't hold.
public struct GuestPredicate: Sendable {
    /// Where a predicate is used, and so what it can ask about.
    public enum Scope: Sendable {
        /// A guest, replayed.
        case guest
        /// The events of a trace, without a replay.
        case events
    }

    /// What must be at hand to answer.
    public struct Needs: OptionSet, Sendable {
        public let rawValue: Int
        public init(rawValue: Int) { self.rawValue = rawValue }

        /// Registers or memory: a replay.
        public static let guest = Needs(rawValue: 1)
        /// The exit's own event.
        public static let event = Needs(rawValue: 2)
        /// The console, or whether the guest had failed.
        public static let transcript = Needs(rawValue: 4)
    }

    enum Operation: Sendable {
        case constant(UInt64)
        case register(Vocabulary.Register)
        case field(Vocabulary.Field)
        /// Replaces an address by what is there.
        case load(bytes: Int, physical: Bool)
        case isMapped(physical: Bool)
        case unary(Unary)
        case binary(Binary)
        /// Replaces a value and two bounds by whether it lies within.
        case within(closed: Bool)
        case console(ConsoleTest, [UInt8])
        case failed
        /// Replaces a value by whether it differs from the one at the start.
        case changed(Int)
        /// Goes on at an operation when the top is this for certain.
        case skip(ifTop: Bool, to: Int)
    }

    enum Unary: Sendable { case not, negate, complement, isNonzero }
    enum Binary: Sendable {
        case and, or, equal, notEqual, less, lessOrEqual, greater, greaterOrEqual
        case bitOr, bitXor, bitAnd, shiftLeft, shiftRight, add, subtract, multiply, divide, remainder
    }
    enum ConsoleTest: Sendable { case contains, endsWith, matches }

    /// The values with which `changed` compares.
    public struct Baseline: Sendable {
        var values: [UInt64?] = []
        public init() {}
    }

    public let source: String
    public let needs: Needs
    private let code: [Operation]
    /// The operations of each `changed`'s argument.
    private let changes: [Range<Int>]

    /// The longest predicate, in bytes.
    public static let longest = 4096

    public init(_ source: String, symbols: SymbolTable = SymbolTable(), scope: Scope = .guest)
        throws(GuestPredicateError)
    {
        var parser = try PredicateParser(source, symbols: symbols, scope: scope)
        try parser.parse()
        self.source = source
        (code, changes, needs) = (parser.code, parser.changes, parser.needs)
    }

    /// Whether the condition holds. `baseline` was taken where the search began.
    public func holds(at moment: Moment, since baseline: Baseline = Baseline()) throws -> Bool {
        try Evaluation(moment: moment, baseline: baseline).run(code[...]) == 1
    }

    /// What `changed` compares with from now on.
    public func baseline(at moment: Moment) throws -> Baseline {
        var baseline = Baseline()
        // An argument may hold another `changed`, which stands before it in the list.
        for range in changes {
            baseline.values.append(try Evaluation(moment: moment, baseline: baseline).run(code[range]))
        }
        return baseline
    }
}

/// Runs the operations of a predicate at one moment.
private struct Evaluation {
    let moment: Moment
    let baseline: GuestPredicate.Baseline

    func run(_ code: ArraySlice<GuestPredicate.Operation>) throws -> UInt64? {
        var stack: [UInt64?] = []
        var index = code.startIndex
        while index < code.endIndex {
            let operation = code[index]
            index += 1
            switch operation {
            case .constant(let value): stack.append(value)
            case .register(let register): stack.append(try read(register))
            case .field(let field):
                stack.append(field == .number ? moment.exit.rawValue : moment.event?.field(field))
            case .failed: stack.append(moment.transcript?.hasFailed(by: moment.exit) == true ? 1 : 0)
            case .console(let test, let text):
                stack.append(moment.transcript?.console(test, text, by: moment.exit) == true ? 1 : 0)
            case .load(let bytes, let physical):
                stack.append(try load(stack.removeLast(), bytes, physical))
            case .isMapped(let physical):
                stack.append(try load(stack.removeLast(), 1, physical) == nil ? 0 : 1)
            case .changed(let slot):
                let now = stack.removeLast()
                stack.append(baseline.values.indices.contains(slot) && now != baseline.values[slot] ? 1 : 0)
            case .unary(let unary):
                stack.append(stack.removeLast().map { Self.apply(unary, $0) })
            case .binary(let binary):
                let (right, left) = (stack.removeLast(), stack.removeLast())
                stack.append(Self.apply(binary, left, right))
            case .within(let closed):
                let (high, low, value) = (stack.removeLast(), stack.removeLast(), stack.removeLast())
                guard let high, let low, let value else { stack.append(nil); continue }
                stack.append(value >= low && (closed ? value <= high : value < high) ? 1 : 0)
            case .skip(let ifTop, let target):
                if stack[stack.count - 1] == (ifTop ? 1 : 0) { index = target }
            }
        }
        return stack.removeLast()
    }

    private func read(_ register: Vocabulary.Register) throws -> UInt64? {
        switch register {
        case .core(let read): try moment.guest.map { read(try $0.registers()) }
        case .full(let read): try moment.guest.map { read(try $0.state()) }
        }
    }

    /// Little-endian bytes at an address; nil unless all are RAM.
    private func load(_ address: UInt64?, _ bytes: Int, _ physical: Bool) throws -> UInt64? {
        guard let address, let guest = moment.guest else { return nil }
        let content =
            physical
            ? guest.memory.read(GuestPhysicalAddress(address), count: bytes)
            : PageWalk(memory: guest.memory, state: try guest.registers()).bytes(at: address, count: bytes)
        guard let content, content.count == bytes else { return nil }
        return content.reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    private static func apply(_ operation: GuestPredicate.Unary, _ value: UInt64) -> UInt64 {
        switch operation {
        case .not: value == 0 ? 1 : 0
        case .isNonzero: value == 0 ? 0 : 1
        case .negate: 0 &- value
        case .complement: ~value
        }
    }

    private static func apply(_ operation: GuestPredicate.Binary, _ left: UInt64?, _ right: UInt64?) -> UInt64? {
        // A missing side decides nothing, and is overruled where the other decides alone.
        switch operation {
        case .and where left == 0 || right == 0: return 0
        case .or where left == 1 || right == 1: return 1
        default: break
        }
        guard let left, let right else { return nil }
        func number(_ truth: Bool) -> UInt64 { truth ? 1 : 0 }
        switch operation {
        case .and: return left & right
        case .or: return left | right
        case .equal: return number(left == right)
        case .notEqual: return number(left != right)
        case .less: return number(left < right)
        case .lessOrEqual: return number(left <= right)
        case .greater: return number(left > right)
        case .greaterOrEqual: return number(left >= right)
        case .bitOr: return left | right
        case .bitXor: return left ^ right
        case .bitAnd: return left & right
        case .shiftLeft: return right < 64 ? left << right : 0
        case .shiftRight: return right < 64 ? left >> right : 0
        case .add: return left &+ right
        case .subtract: return left &- right
        case .multiply: return left &* right
        case .divide: return right == 0 ? nil : left / right
        case .remainder: return right == 0 ? nil : left % right
        }
    }
}
