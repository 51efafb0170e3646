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
        var disagreements: [String] = []
        while done < Self.count, disagreements.count < 20 {
            let part = min(DifferentialMachine.batch, Self.count - done)
            let cases = (done..<(done + part)).compactMap { generator.make($0 &* stride) }
            #expect(cases.count > part * 9 / 10)
            disagreements += try run.compare(cases, mode, isEmulated: isEmulated).map(\.description)
            done += part
        }
        #expect(disagreements.isEmpty, "\(disagreements.joined(separator: "\n"))")
    }

    @Test func pastDisagreementsStaySettled() throws {
        let run = try DifferentialRun()
        for past in DifferentialRegressions.all {
            let cases = try (0..<64).map { try past.makeCase(seed: UInt64($0)) }
            let found = try run.compare(cases, past.mode)
            #expect(found.isEmpty, "\(past.what): \(found.first?.description ?? "")")
        }
    }
}
