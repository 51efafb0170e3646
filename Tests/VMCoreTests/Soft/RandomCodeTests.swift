import Foundation
import Testing
import VMCore

/// Random bytes as code, in each mode, with random page tables: whatever a guest does, the monitor lives, and the guest stops
/// at the instruction that it is told to.
@Suite struct RandomCodeTests {
    /// Guests of each mode; `make fuzz` asks for more.
    private static let count = max(5_000, ProcessInfo.processInfo.environment["VMRR_FUZZ_SOFT"].flatMap { Int($0) } ?? 0)
    private static let seed = ProcessInfo.processInfo.environment["VMRR_SEED"].flatMap { UInt64($0) } ?? 1
    /// Of a long run, only these: `VMRR_FUZZ_MODES=real,long`.
    private static let modes = ProcessInfo.processInfo.environment["VMRR_FUZZ_MODES"].flatMap {
        $0.isEmpty ? nil : $0.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
    }

    /// A name that is no mode's would leave a run of nothing, which passes.
    @Test func theModesAskedForExist() {
        let all = RandomGuest.Mode.allCases.map { "\($0)" }
        #expect((Self.modes ?? []).allSatisfy(all.contains), "modes: \(all.joined(separator: ","))")
    }

    @Test(arguments: RandomGuest.Mode.allCases.filter { modes?.contains("\($0)") ?? true })
    func randomCodeHarmsNothing(_ mode: RandomGuest.Mode) throws {
        let run = try RandomRun(mode, seed: Self.seed)
        for number in 0..<Self.count { try run.run(number) }
        print("\(run)")
        #expect(run.overruns.isEmpty)
        // It was the random code that executed, and not the handlers alone, and met what it could.
        #expect(run.random > run.guests * mode.leastInstructions)
        #expect(run.exceptions.isSuperset(of: mode.exceptions), "\(run.exceptions.sorted())")
        #expect(run.interrupts > 50)
        #expect(run.exits > run.guests / 10)
        #expect(run.lacking < run.guests / 4)
        #expect(run.stuck < run.guests / 50)
        #expect(run.shutdowns < run.guests / 2)
    }

    @Test func aSeedAndANumberMakeAGuest() throws {
        for mode in RandomGuest.Mode.allCases {
            let alone = try RandomRun(mode, seed: 7), last = try RandomRun(mode, seed: 7)
            for number in 0..<20 { try last.run(number) }
            let before = last.instructions
            try last.run(20)
            try alone.run(20)
            #expect(alone.instructions == last.instructions - before, "\(mode)")
        }
    }
}

extension RandomGuest.Mode {
    /// Two thirds of what 5,000 guests came to, for each of them: half of the guests are watched.
    fileprivate var leastInstructions: Int { isPaged ? 5 : 14 }

    /// The exceptions that a guest of this mode must have met.
    fileprivate var exceptions: Set<UInt8> {
        // #DE, #DB, #UD, #NM, #GP, #MF
        var all: Set<UInt8> = [0, 1, 6, 7, 13, 16]
        if self != .long, self != .longUser { all.insert(5) }  // #BR: 64-bit code has no BOUND
        if isPaged { all.insert(14) }  // #PF
        if self != .real { all.insert(8) }  // #DF: in real mode no vector lies beyond the table's end
        if [.protected16, .protected32, .protected32User].contains(self) { all.insert(11) }  // #NP
        if isLong || self == .protected32 || self == .protected32User { all.insert(12) }  // #SS
        return all
    }
}
