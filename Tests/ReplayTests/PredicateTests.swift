import Foundation
import Replay
import Testing
import Trace
import VMCore

/// A guest that stands still, made up by the test.
private struct StillGuest: GuestView {
    var fixed = CPUState()
    let memory: GuestMemory

    init() throws { memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 2 << 20)) }

    func registers() -> CoreRegisters { fixed.core }
    func state() -> CPUState { fixed }
}

@Suite struct PredicateTests {
    private let symbols = SymbolTable([
        Symbol(name: "counter", address: 0x5000, size: 4), Symbol(name: "main", address: 0x1000, size: 0x40),
        Symbol(name: "cs", address: 0x77),
    ])

    private func guest() throws -> StillGuest {
        var guest = try StillGuest()
        guest.fixed.general.rax = 0x1122_3344_5566_7788
        guest.fixed.general.r9 = 0xFFFF_FFFF_8000_0001
        guest.fixed.general.rip = 0x1010
        guest.fixed.general.rflags = 0x246
        guest.fixed.cs = SegmentRegister(selector: 0x10, base: 0x20, limit: 0xFFFF, attributes: 0x9B)
        guest.fixed.control.cr0 = 0x11
        guest.fixed.msrs[5] = 0xABC
        guest.memory.write([0x78, 0x56, 0x34, 0x12, 0xFF], at: .init(0x5000))
        return guest
    }

    private func holds(_ source: String, _ guest: StillGuest? = nil, event: TraceEvent? = nil) throws -> Bool {
        let moment = Moment(exit: ExitNumber(7), event: event, guest: try guest ?? self.guest(), transcript: nil)
        return try GuestPredicate(source, symbols: symbols).holds(at: moment)
    }

    @Test(arguments: [
        "rax == 0x1122334455667788", "eax == 0x55667788 && ax == 0x7788 && ah == 0x77 && al == 0x88",
        "r9d == 0x80000001 && r9w == 1 && r9b == 1", "zf == 1 && pf && if && !cf && iopl == 0",
        "cs == 0x10 && cs.base == 0x20",
        "cr0 & 1 == 1", "lstar == 0xabc", "u32[0x5000] == 0x12345678", "u8[counter + 4] == 255",
        "u16[phys counter] == 0x5678",
        "u64[virt counter] == 0xff12345678", "rip in main", "rip in 0x1000..<0x1011", "rip in 0x1000...0x1010",
        "!(rip in 0x1000..<0x1010)", "not rip == 5 and true", "1 + 2 * 3 == 7", "-1 == 0xffff_ffff_ffff_ffff",
        "~0 >> 63 == 1",
        "1 << 64 == 0", "10 / 3 == 3 && 10 % 3 == 1", "5 - 6 + 1 == 0", "6 & 3 | 8 ^ 1 == 11", "'A' == 65", "exit == 7",
        "exit.number == 7", "&cs == 0x77", "0b101 == 5", "mapped(0x5000) && !mapped(phys 0x40000000)",
        "false || rax != 0", "1 < 2 && 2 <= 2 && 3 > 2 && 3 >= 3",
    ])
    func holds(source: String) throws { #expect(try holds(source, nil)) }

    /// What has no value decides nothing, and never holds.
    @Test(arguments: [
        "u32[0x40000000] == 0", "u32[0x40000000] != 0", "!(u32[0x40000000] == 0)", "exit.port == 0", "exit.port != 0",
        "1 / 0 == 1 / 0", "u8[u64[0x40000000]] == 0", "u32[0x40000000] == 0 && true",
    ])
    func missingValuesDontHold(source: String) throws { #expect(try !holds(source, nil)) }

    @Test func missingValuesAreOverruled() throws {
        #expect(try holds("u32[0x40000000] == 0 || true"))
        #expect(try holds("!(u32[0x40000000] == 0 && false)"))
    }

    @Test func linearAddressesAreTranslated() throws {
        var guest = try guest()
        // 32-bit paging: linear 0x40_0000 is physical 0x5000.
        guest.fixed.control.cr0 = 0x8000_0011
        guest.fixed.control.cr3 = 0x8000
        guest.memory.write([0x01, 0x90, 0, 0], at: .init(0x8004))
        guest.memory.write([0x01, 0x50, 0, 0], at: .init(0x9000))
        #expect(try holds("u32[0x400000] == 0x12345678", guest))
        #expect(try holds("u32[phys counter] == 0x12345678 && !mapped(counter)", guest))
    }

    @Test func exitsHaveFields() throws {
        let event = TraceEvent(
            identity: EventIdentity(kind: .portWrite, size: 1, address: 0xE9), value: 0x41, sequence: 9,
            exit: ExitNumber(7))
        #expect(
            try holds(
                "exit.kind == portWrite && exit.port == 0xe9 && exit.value == 'A' && exit.size == 1", event: event))
        #expect(try !holds("exit.vector == 0x20 || exit.rip == 0", event: event))
    }

    @Test func changedComparesWithTheBaseline() throws {
        let guest = try guest()
        let predicate = try GuestPredicate("changed(u32[counter]) && !changed(rax)", symbols: symbols)
        let moment = Moment(exit: ExitNumber(1), event: nil, guest: guest, transcript: nil)
        let baseline = try predicate.baseline(at: moment)
        #expect(try !predicate.holds(at: moment, since: baseline))
        guest.memory.write([1], at: .init(0x5001))
        #expect(try predicate.holds(at: moment, since: baseline))
    }

    @Test(arguments: [
        ("rxx == 5", 1, "no register"), ("rax == ", 8, "missing at the end"), ("rax = 5", 5, "equality"),
        ("u32[rax", 8, "']' is expected"), ("u33[5] == 1", 1, "'u33'"), ("1 < 2 < 3", 7, "don't chain"),
        ("console == 3", 1, "isn't compared"), ("console contains 5", 18, "a text in quotes"),
        ("rax contains \"a\"", 1, "the console"),
        ("exit.kind == 5", 1, "can't be compared"), ("exit.flavour == 1", 1, "exit.kind"), ("\"abc", 1, "isn't closed"),
        ("'ab' == 1", 1, "one byte"), ("0x == 1", 1, "a number"), ("99999999999999999999 == 1", 1, "64 bits"),
        ("(rax == 1", 10, "')' is expected"), ("rax == 1 1", 10, "an operator"), ("console", 1, "no condition"),
        ("rip in 5", 8, "a range"), ("\"\\q\" == 1", 2, "backslash"), ("é == 1", 1, "means nothing"),
        ("exit.kind", 1, "a kind of exit"),
    ])
    func errorsPointAtTheColumn(source: String, column: Int, words: String) throws {
        let error = try #require(throws: GuestPredicateError.self) { try GuestPredicate(source, symbols: symbols) }
        #expect(error.column == column, "\(error)")
        #expect(error.message.contains(words), "\(error)")
        let lines = error.description.split(separator: "\n", omittingEmptySubsequences: false)
        #expect(lines.count == 3 && lines[1] == "    \(source)", "\(error)")
        #expect(lines[2].prefix { $0 == " " }.count == 4 + column - 1, "\(error)")
    }

    @Test(arguments: ["rax == 0", "u8[0] == 1", "changed(exit)", "mapped(5)"])
    func eventsAloneHaveNoGuest(source: String) {
        #expect(throws: GuestPredicateError.self) { try GuestPredicate(source, scope: .events) }
    }

    @Test(arguments: [
        ("(", ")"), ("!", ""), ("-", ""), ("u8[", "]"), ("not ", ""), ("changed(", ")"), ("1 + (2 * (", "))"),
    ])
    func depthIsBounded(open: String, close: String) {
        let count = GuestPredicate.longest / (open.utf8.count + close.utf8.count) - 2
        let source = String(repeating: open, count: count) + "1" + String(repeating: close, count: count)
        #expect(throws: GuestPredicateError.self) { try GuestPredicate(source) }
    }

    @Test func longChainsAreNoDepth() throws {
        let chain = "1" + String(repeating: "+1", count: 2000) + " == 2001"
        #expect(try holds(chain))
    }

    /// VMRR_FUZZ_PREDICATES=1000000 for the long run. Half of the inputs are words in any order, half valid predicates
    /// with a few bytes changed.
    @Test func noInputCrashesTheParser() throws {
        let count = ProcessInfo.processInfo.environment["VMRR_FUZZ_PREDICATES"].flatMap { Int($0) } ?? 20_000
        let seed = ProcessInfo.processInfo.environment["VMRR_SEED"].flatMap { UInt64($0) } ?? 2026
        print("predicates: \(count) inputs, seed \(seed)")
        var random = SplitMix(state: seed)
        let guest = try guest()
        let moment = Moment(exit: ExitNumber(7), event: nil, guest: guest, transcript: nil)
        var (valid, refused) = (0, 0)
        for number in 0..<count {
            let source = number % 2 == 0 ? Self.words(&random) : Self.mutated(&random)
            do {
                let predicate = try GuestPredicate(source, symbols: symbols, scope: number % 16 == 0 ? .events : .guest)
                _ = try predicate.holds(at: moment, since: predicate.baseline(at: moment))
                valid += 1
            } catch let error as GuestPredicateError {
                #expect(error.column >= 1 && error.column <= source.unicodeScalars.count + 1, "\(source)")
                _ = error.description
                refused += 1
            }
        }
        // Both ways are exercised.
        #expect(valid > count / 50 && refused > count / 50, "\(valid) valid, \(refused) refused")
    }

    private static let vocabulary = [
        "rax", "eax", "al", "rip", "rflags", "zf", "cs", "cs.base", "cr0", "cpl", "u8", "u16", "u32", "u64", "[", "]",
        "(", ")",
        "phys", "virt", "mapped", "changed", "exit", "exit.kind", "exit.port", "portWrite", "halt", "console",
        "contains",
        "endsWith", "matches", "failed", "true", "false", "in", "..<", "...", "&&", "||", "!", "not", "and", "or", "==",
        "!=",
        "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "&", "|", "^", "~", "<<", ">>", "0", "1", "0x5000",
        "0xffffffffffffffff",
        "\"text\"", "'a'", "counter", "main", "nothing", "\"", "\\", ".", "é", "\u{0}", "\n",
    ]

    private static func words(_ random: inout SplitMix) -> String {
        let count = Int(random.next() % 24)
        let space = random.next() % 4 == 0 ? "" : " "
        return (0..<count).map { _ in vocabulary[Int(random.next() % UInt64(vocabulary.count))] }.joined(
            separator: space)
    }

    private static let seeds = [
        "u32[counter] < u32[0x5000] + 1 && exit.kind == portWrite", "rip in main or console contains \"panic\\n\"",
        "changed(u64[phys rax & ~0xfff]) || !(zf == 1)", "exit.port in 0x3f8..<0x400 && exit.value == 'x'",
        "console matches \"*LOST*\" && failed", "mapped(virt rsp) && u8[rsp - 8] % 3 == -1",
    ]

    private static func mutated(_ random: inout SplitMix) -> String {
        var bytes = Array(seeds[Int(random.next() % UInt64(seeds.count))].utf8)
        for _ in 0..<(random.next() % 4) where !bytes.isEmpty {
            let place = Int(random.next() % UInt64(bytes.count))
            switch random.next() % 3 {
            case 0: bytes[place] = UInt8(truncatingIfNeeded: random.next())
            case 1: bytes.remove(at: place)
            default: bytes.insert(contentsOf: bytes[place...].prefix(Int(random.next() % 8)), at: place)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// SplitMix64: the same numbers from the same seed everywhere.
struct SplitMix {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
