import CZydis
import DifferentialGuest
import Foundation
import Testing
import VMCore

/// Generated cases on the processor itself, in a KVM guest at CPL 3, and in the soft engine.
///
/// Where KVM emulates user mode as well, that emulation is what the soft engine is compared with.
@Suite(.enabled(if: KVM.isUsable, "KVM isn't usable here"), .serialized) struct DifferentialTests {
    /// Cases of each mode; `make differential` asks for more.
    private static let count = ProcessInfo.processInfo.environment["VMRR_DIFFERENTIAL"].flatMap { Int($0) } ?? 5_000
    private static let seed = ProcessInfo.processInfo.environment["VMRR_SEED"].flatMap { UInt64($0) } ?? 1

    @Test(arguments: DifferentialMachine.Mode.allCases)
    func softEngineDoesWhatTheProcessorDoes(_ mode: DifferentialMachine.Mode) throws {
        let run = try DifferentialRun()
        let isEmulated = try mode == .compatibility32 && !run.runs32BitCode()
        if isEmulated { print("SKIPPED: \(mode.rawValue): vector and x87 instructions, which this KVM's emulator lacks") }
        let catalogue = DifferentialCatalogue(mode, hasAVX: run.hasAVX && mode == .long64)
        let names = Set(catalogue.encodings.map(\.mnemonic.rawValue)).count
        print("\(mode.rawValue): \(catalogue.encodings.count) encodings of \(names) instructions, \(Self.count) cases, "
            + "VMRR_SEED=\(Self.seed)")
        for (reason, encodings) in catalogue.skipped.sorted(by: { $0.key < $1.key }) {
            print("SKIPPED: \(encodings) encodings: \(reason)")
        }
        var generator = DifferentialGenerator(catalogue, seed: Self.seed)
        // A stride that has no divisor in common with the catalogue meets each encoding in its turn, from all parts of it.
        let stride = catalogue.strideThroughAll
        var done = 0
        var outcome = DifferentialRun.Outcome()
        while done < Self.count, outcome.disagreements.count < 20 {
            let part = min(DifferentialMachine.batch, Self.count - done)
            let cases = (done..<(done + part)).compactMap { generator.make($0 &* stride) }
            #expect(cases.count > part * 9 / 10)
            try run.compare(cases, mode, isEmulated: isEmulated, into: &outcome)
            done += part
        }
        let disagreements = outcome.disagreements.map(\.description)
        #expect(disagreements.isEmpty, "\(disagreements.joined(separator: "\n"))")
        checkCounts(outcome, done, isEmulated: isEmulated)
    }

    /// Alignment checks: who makes them, for which operands, and what comes before them.
    @Test(arguments: DifferentialMachine.Mode.allCases)
    func alignmentIsCheckedAsTheProcessorDoes(_ mode: DifferentialMachine.Mode) throws {
        let run = try DifferentialRun()
        guard try run.checksAlignment(mode) else {
            print("SKIPPED: \(mode.rawValue): alignment checks, which this processor or KVM doesn't make")
            return
        }
        let catalogue = DifferentialCatalogue(mode, hasAVX: run.hasAVX && mode == .long64)
        var generator = DifferentialGenerator(catalogue, seed: Self.seed, checksAlignment: true)
        print("\(mode.rawValue) with alignment checks: \(Self.count) cases, VMRR_SEED=\(Self.seed)")
        var done = 0
        var outcome = DifferentialRun.Outcome()
        while done < Self.count, outcome.disagreements.count < 20 {
            let part = min(DifferentialMachine.batch, Self.count - done)
            try run.compare((done..<(done + part)).compactMap { generator.make($0 &* catalogue.strideThroughAll) }, mode,
                            ofAlignment: true, into: &outcome)
            done += part
        }
        let disagreements = outcome.disagreements.map(\.description)
        #expect(disagreements.isEmpty, "\(disagreements.joined(separator: "\n"))")
        #expect(outcome.compared.values.reduce(0, +) > done * 9 / 10)
        // 435 of the first 5,000 cases raised #AC.
        #expect(outcome.faulted[17, default: 0] > done / 20, "\(outcome.faulted)")
    }

    /// What didn't count is said, and what did is enough.
    private func checkCounts(_ outcome: DifferentialRun.Outcome, _ done: Int, isEmulated: Bool) {
        let compared = outcome.compared.values.reduce(0, +), left = outcome.left.values.reduce(0, +)
        let lacking = outcome.left.keys.filter { outcome.compared[$0] == nil }.sorted()
        print("compared \(compared) cases of \(outcome.compared.count) instructions; SKIPPED: \(left) cases that KVM's emulator "
            + "lacks or does its own way, all those of \(lacking.count) instructions: \(lacking.joined(separator: " "))")
        // Where 32-bit code is emulated, a third of the cases and 140 of the instructions of 5,000 cases counted.
        #expect(compared > (isEmulated ? done / 4 : done * 9 / 10), "\(compared) of \(done)")
        if isEmulated, done >= 5_000 { #expect(outcome.compared.count > 120, "\(outcome.compared.count)") }
    }

    @Test func pastDisagreementsStaySettled() throws {
        let run = try DifferentialRun()
        for past in DifferentialRegressions.all {
            if past.isOfAMD, DifferentialRun.hostIsIntel { continue }
            if past.checksAlignment, try !run.checksAlignment(past.mode) { continue }
            let cases = try (0..<64).map { try past.makeCase(seed: UInt64($0)) }
            var outcome = DifferentialRun.Outcome()
            try run.compare(cases, past.mode, ofAlignment: past.checksAlignment, into: &outcome)
            #expect(outcome.disagreements.isEmpty, "\(past.what): \(outcome.disagreements.first?.description ?? "")")
            #expect(outcome.compared.values.reduce(0, +) == cases.count)
        }
    }
}
