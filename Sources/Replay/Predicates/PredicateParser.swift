import VMCore

/// Parses a predicate, checks its types, and turns it into operations for a stack machine, in one pass.
///
/// Nothing but brackets, unary signs and right operands recurses, to a bounded depth; so neither a long nor a deep
/// source can exhaust the stack, here or when the operations run.
struct PredicateParser {
    private enum Kind: String {
        case number = "a number"
        case truth = "a condition"
        case eventKind = "a kind of exit"
        case text = "a text"
        case console = "the console"
    }

    private struct Operand {
        var kind: Kind
        var range: Range<Int>
        /// Where the operand is a symbol's name and nothing else.
        var symbol: Symbol?
    }

    private enum Precedence {
        static let or = 1
        static let and = 2
        static let not = 3
        static let comparison = 4
        static let bitOr = 5
        static let unary = 11
    }

    private static let binary: [String: (precedence: Int, operation: GuestPredicate.Binary)] = [
        "||": (1, .or), "or": (1, .or), "&&": (2, .and), "and": (2, .and),
        "==": (4, .equal), "!=": (4, .notEqual), "<": (4, .less), "<=": (4, .lessOrEqual), ">": (4, .greater),
        ">=": (4, .greaterOrEqual), "|": (5, .bitOr), "^": (6, .bitXor), "&": (7, .bitAnd), "<<": (8, .shiftLeft),
        ">>": (8, .shiftRight), "+": (9, .add), "-": (9, .subtract), "*": (10, .multiply), "/": (10, .divide),
        "%": (10, .remainder),
    ]
    private static let consoleTests: [String: GuestPredicate.ConsoleTest] = [
        "contains": .contains, "endsWith": .endsWith, "matches": .matches,
    ]
    private static let widths = ["u8": 1, "u16": 2, "u32": 4, "u64": 8]
    /// Brackets and unary signs within each other.
    private static let deepest = 64

    private(set) var code: [GuestPredicate.Operation] = []
    private(set) var changes: [Range<Int>] = []
    private(set) var needs: GuestPredicate.Needs = []

    private var lexer: Lexer
    private let symbols: SymbolTable
    private let scope: GuestPredicate.Scope
    private var token = Token.end
    private var range = 0..<0
    private var depth = 0

    init(_ source: String, symbols: SymbolTable, scope: GuestPredicate.Scope) throws(GuestPredicateError) {
        lexer = Lexer(source)
        self.symbols = symbols
        self.scope = scope
        guard source.utf8.count <= GuestPredicate.longest else {
            throw lexer.error("a predicate has at most \(GuestPredicate.longest) bytes", 0..<0)
        }
        try advance()
    }

    mutating func parse() throws(GuestPredicateError) {
        try truth(try expression(Precedence.or))
        guard token == .end else { throw error("an operator is expected here") }
    }

    // MARK: Tokens

    private mutating func advance() throws(GuestPredicateError) { (token, range) = try lexer.next() }

    private func error(_ message: String, _ range: Range<Int>? = nil) -> GuestPredicateError {
        lexer.error(message, range ?? self.range)
    }

    private mutating func expect(_ sign: String) throws(GuestPredicateError) {
        guard token == .sign(sign) else { throw error("'\(sign)' is expected here") }
        try advance()
    }

    /// The operator or word that the token is.
    private var word: String? {
        switch token {
        case .sign(let text), .name(let text): text
        default: nil
        }
    }

    // MARK: Types

    private func require(_ kind: Kind, _ operand: Operand) throws(GuestPredicateError) {
        guard operand.kind == kind else {
            throw error("\(kind.rawValue) is expected, and this is \(operand.kind.rawValue)", operand.range)
        }
    }

    /// Makes an operand a condition: a number is one, false where it is 0.
    private mutating func truth(_ operand: Operand) throws(GuestPredicateError) {
        if operand.kind == .number { return code.append(.unary(.isNonzero)) }
        guard operand.kind != .console else {
            throw error("the console alone is no condition: say console contains \"text\"", operand.range)
        }
        try require(.truth, operand)
    }

    private mutating func use(_ need: GuestPredicate.Needs, _ range: Range<Int>) throws(GuestPredicateError) {
        guard scope == .guest || !need.contains(.guest) else {
            throw error(
                "events are listed without a replay, so only exit.*, console and failed can be asked about here",
                range)
        }
        needs.insert(need)
    }

    // MARK: Operators

    private mutating func expression(_ minimum: Int) throws(GuestPredicateError) -> Operand {
        depth += 1
        defer { depth -= 1 }
        // Each bracket takes a level for itself and up to one for each precedence on the way to it.
        guard depth <= Self.deepest * 4 else { throw error("too many brackets within each other") }
        var left = try operand()
        while let word {
            if word == "in" || Self.consoleTests[word] != nil {
                guard minimum <= Precedence.comparison else { return left }
                left = word == "in" ? try within(left) : try consoleTest(left, Self.consoleTests[word]!)
            } else if let (precedence, operation) = Self.binary[word], precedence >= minimum {
                left = try binary(left, operation, precedence)
            } else {
                return left
            }
        }
        return left
    }

    private mutating func binary(
        _ left: Operand, _ operation: GuestPredicate.Binary, _ precedence: Int
    ) throws(GuestPredicateError) -> Operand {
        let isLogic = precedence <= Precedence.and
        if isLogic { try truth(left) }
        try advance()
        // The right side isn't looked at when the left one has decided.
        let skip = code.count
        if isLogic { code.append(.skip(ifTop: precedence == Precedence.or, to: 0)) }
        let right = try expression(precedence + 1)
        let result = left.range.lowerBound..<right.range.upperBound
        if isLogic {
            try truth(right)
        } else if precedence == Precedence.comparison {
            try compare(left, right, operation)
        } else {
            try require(.number, left)
            try require(.number, right)
        }
        code.append(.binary(operation))
        if isLogic { code[skip] = .skip(ifTop: precedence == Precedence.or, to: code.count) }
        if precedence == Precedence.comparison, let word, Self.binary[word]?.precedence == Precedence.comparison {
            throw error("comparisons don't chain: join them with &&, or say x in low...high")
        }
        return Operand(kind: isLogic || precedence == Precedence.comparison ? .truth : .number, range: result)
    }

    private func compare(_ left: Operand, _ right: Operand, _ operation: GuestPredicate.Binary)
        throws(GuestPredicateError)
    {
        for side in [left, right] where side.kind == .console || side.kind == .text {
            throw error("\(side.kind.rawValue) isn't compared like a number: say console contains \"text\"", side.range)
        }
        guard left.kind == right.kind else {
            throw error(
                "\(left.kind.rawValue) can't be compared with \(right.kind.rawValue)",
                left.range.lowerBound..<right.range.upperBound)
        }
        let isOrder =
            switch operation {
            case .equal, .notEqual: false
            default: true
            }
        if isOrder { try require(.number, left) }
    }

    private mutating func within(_ value: Operand) throws(GuestPredicateError) -> Operand {
        try require(.number, value)
        try advance()
        let low = try expression(Precedence.bitOr)
        try require(.number, low)
        let end: Int
        if token == .sign("...") || token == .sign("..<") {
            let closed = token == .sign("...")
            try advance()
            let high = try expression(Precedence.bitOr)
            try require(.number, high)
            code.append(.within(closed: closed))
            end = high.range.upperBound
        } else if let symbol = low.symbol, symbol.size > 0 {
            code.append(.constant(symbol.address &+ symbol.size))
            code.append(.within(closed: false))
            end = low.range.upperBound
        } else {
            throw error("a range is expected, such as 0x1000..<0x2000, or a symbol with a size", low.range)
        }
        return Operand(kind: .truth, range: value.range.lowerBound..<end)
    }

    private mutating func consoleTest(
        _ left: Operand, _ test: GuestPredicate.ConsoleTest
    ) throws(GuestPredicateError) -> Operand {
        try require(.console, left)
        try advance()
        guard case .string(let text) = token else { throw error("a text in quotes is expected here") }
        code.append(.console(test, text))
        let result = left.range.lowerBound..<range.upperBound
        try advance()
        return Operand(kind: .truth, range: result)
    }

    // MARK: Operands

    private mutating func operand() throws(GuestPredicateError) -> Operand {
        let start = range
        switch token {
        case .number(let value):
            code.append(.constant(value))
            try advance()
            return Operand(kind: .number, range: start)
        case .string:
            try advance()
            return Operand(kind: .text, range: start)
        case .sign("("):
            try advance()
            var inner = try expression(Precedence.or)
            inner.range = start.lowerBound..<range.upperBound
            inner.symbol = nil
            try expect(")")
            return inner
        case .sign("!"): return try prefixed(.not, Precedence.unary)
        case .sign("-"): return try prefixed(.negate, Precedence.unary)
        case .sign("~"): return try prefixed(.complement, Precedence.unary)
        case .sign("&"):
            try advance()
            guard case .name(let name) = token else { throw error("a symbol's name is expected after &") }
            return try symbol(name)
        case .name("not"): return try prefixed(.not, Precedence.not)
        case .name(let name): return try named(name)
        case .end: throw error("something is missing at the end", start.lowerBound..<start.lowerBound)
        default: throw error("a value is expected here")
        }
    }

    private mutating func prefixed(_ operation: GuestPredicate.Unary, _ precedence: Int) throws(GuestPredicateError)
        -> Operand
    {
        let start = range.lowerBound
        try advance()
        let operand = try expression(precedence)
        let isNot = operation == .not
        if isNot { try truth(operand) } else { try require(.number, operand) }
        code.append(.unary(operation))
        return Operand(kind: isNot ? .truth : .number, range: start..<operand.range.upperBound)
    }

    private mutating func named(_ name: String) throws(GuestPredicateError) -> Operand {
        let start = range
        if let bytes = Self.widths[name] { return try memory(.load(bytes: bytes, physical: false)) }
        if let register = Vocabulary.registers[name] {
            try use(.guest, start)
            code.append(.register(register))
        } else if name == "exit" {
            code.append(.field(.number))
        } else if name.hasPrefix("exit.") {
            return try field(String(name.dropFirst(5)))
        } else if let kind = Vocabulary.kinds[name] {
            code.append(.constant(kind))
            try advance()
            return Operand(kind: .eventKind, range: start)
        } else if name == "console" {
            try use(.transcript, start)
            try advance()
            return Operand(kind: .console, range: start)
        } else if name == "failed" {
            try use(.transcript, start)
            code.append(.failed)
            try advance()
            return Operand(kind: .truth, range: start)
        } else if name == "true" || name == "false" {
            code.append(.constant(name == "true" ? 1 : 0))
            try advance()
            return Operand(kind: .truth, range: start)
        } else if name == "changed" {
            return try changed()
        } else if name == "mapped" {
            return try memory(.isMapped(physical: false))
        } else {
            return try symbol(name)
        }
        try advance()
        return Operand(kind: .number, range: start)
    }

    private mutating func field(_ name: String) throws(GuestPredicateError) -> Operand {
        guard let field = Vocabulary.Field(rawValue: name) else {
            let names = Vocabulary.Field.allCases.map { "exit.\($0.rawValue)" }.joined(separator: ", ")
            throw error("an exit has \(names)")
        }
        let start = range
        if field != .number { try use(.event, start) }
        code.append(.field(field))
        try advance()
        return Operand(kind: field == .kind ? .eventKind : .number, range: start)
    }

    private mutating func symbol(_ name: String) throws(GuestPredicateError) -> Operand {
        guard let symbol = symbols[name] else {
            throw error(
                "there is no register, field or symbol '\(name)'"
                    + (symbols.isEmpty ? " (--symbols FILE reads symbols)" : ""))
        }
        code.append(.constant(symbol.address))
        let start = range
        try advance()
        return Operand(kind: .number, range: start, symbol: symbol)
    }

    /// `u32[virt address]` and `mapped(phys address)`: the word before the address is optional.
    private mutating func memory(_ operation: GuestPredicate.Operation) throws(GuestPredicateError) -> Operand {
        let start = range
        try use(.guest, start)
        var operation = operation
        var (open, close) = ("(", ")")
        var kind = Kind.truth
        if case .load = operation { (open, close, kind) = ("[", "]", .number) }
        try advance()
        try expect(open)
        if token == .name("phys") || token == .name("virt") {
            let physical = token == .name("phys")
            switch operation {
            case .load(let bytes, _): operation = .load(bytes: bytes, physical: physical)
            default: operation = .isMapped(physical: physical)
            }
            try advance()
        }
        try require(.number, try expression(Precedence.or))
        code.append(operation)
        let result = start.lowerBound..<range.upperBound
        try expect(close)
        return Operand(kind: kind, range: result)
    }

    private mutating func changed() throws(GuestPredicateError) -> Operand {
        let start = range.lowerBound
        guard scope == .guest else {
            throw error("changed compares with the start of a search, and events are listed one by one")
        }
        try advance()
        try expect("(")
        let first = code.count
        let operand = try expression(Precedence.or)
        guard operand.kind == .number || operand.kind == .truth else {
            throw error("a number is expected", operand.range)
        }
        changes.append(first..<code.count)
        code.append(.changed(changes.count - 1))
        let result = start..<range.upperBound
        try expect(")")
        return Operand(kind: .truth, range: result)
    }
}
