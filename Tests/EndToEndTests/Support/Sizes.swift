import Foundation

/// How long the tests take: the defaults fit `make test`, the environment makes them longer.
enum Sizes {
    private static func number(_ name: String, _ fallback: Int) -> Int {
        ProcessInfo.processInfo.environment[name].flatMap { Int($0) } ?? fallback
    }

    /// Replays of each guest; from 25 on, the guests run at their full length.
    static let replays = number("VMRR_REPLAYS", 3)
    static var isLong: Bool { replays >= 25 }
    /// Recordings killed at a random moment.
    static let kills = number("VMRR_KILLS", 8)
    /// Exits at which each of some recordings goes live.
    static let resumes = number("VMRR_RESUMES", 4)
    /// Seconds that the flight recorder runs.
    static let soak = number("VMRR_SOAK", 60)
    /// Mutated traces.
    static let mutants = number("VMRR_FUZZ", 60)
    /// Seconds that the Linux guest works, and replays of that and of the same with trapped timestamps.
    static let linuxSeconds = number("VMRR_LINUX_SECONDS", 1)
    static let linuxReplays = number("VMRR_LINUX_REPLAYS", 1)
    static var linuxTrapReplays: Int { (linuxReplays + 3) / 4 }
    /// The seed of everything random.
    static let seed = UInt64(number("VMRR_SEED", 2026))
}

/// SplitMix64: the tests' only randomness.
struct Seeded: RandomNumberGenerator {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }

    /// A number from 0 to `n` - 1; 0 where `n` is 0.
    mutating func below(_ n: Int) -> Int { n > 0 ? Int(next() % UInt64(n)) : 0 }
    mutating func bytes(_ n: Int) -> [UInt8] { (0..<n).map { _ in UInt8(truncatingIfNeeded: next()) } }
    mutating func pick<C: Collection>(_ of: C) -> C.Element { of[of.index(of.startIndex, offsetBy: below(of.count))] }
    /// A number that is likely to be handled badly.
    mutating func hostile() -> Int64 {
        switch below(8) {
        case 0: return 0
        case 1: return -1
        case 2: return .max
        case 3: return .min
        case 4: return Int64(1) << Int64(below(63))
        case 5: return (Int64(1) << Int64(below(63))) &- 1
        case 6: return Int64(below(300))
        default: return Int64(bitPattern: next())
        }
    }
}
