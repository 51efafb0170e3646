import Foundation
import Testing
import VMCore

/// System instructions at CPL 0, in KVM and in the soft engine: registers, segment caches, flags, memory and exits.
@Suite(.enabled(if: KVM.isUsable, "KVM isn't usable here"), .serialized) struct SystemDifferentialTests {
    /// Cases of each mode; `make differential` asks for more.
    private static let count = ProcessInfo.processInfo.environment["VMRR_DIFFERENTIAL"].flatMap { Int($0) } ?? 5_000
    private static let seed = ProcessInfo.processInfo.environment["VMRR_SEED"].flatMap { UInt64($0) } ?? 1

    @Test(arguments: SystemMachine.Mode.allCases)
    func softEngineDoesWhatKVMDoesAtCPL0(_ mode: SystemMachine.Mode) throws {
        var run = try SystemRun()
        var cases = SystemCases(mode, seed: Self.seed)
        var done = 0
        while done < Self.count, run.disagreements.count < 20 {
            try run.compare(cases.make(done))
            done += 1
        }
        print("\(mode.rawValue) at CPL 0: \(done) cases, \(run.summary), VMRR_SEED=\(Self.seed)")
        for (what, cases) in run.peculiarities.sorted(by: { $0.key < $1.key }) { print("this KVM's way, \(cases) cases: \(what)") }
        #expect(run.disagreements.isEmpty, "\(run.disagreements.joined(separator: "\n"))")
        for (name, count) in run.counts where count.all >= 50 {
            #expect(count.compared >= mode.floor(name, of: count.all, emulated: run.emulates), "\(name): \(count)")
        }
        #expect(done < 5_000 || run.counts.count == SystemCases.Kind.allCases.count)
    }

    @Test func pastDisagreementsStaySettled() throws {
        var run = try SystemRun()
        func compare(_ name: String, _ code: [UInt8], _ mode: SystemMachine.Mode, _ change: (inout CPUState) -> Void) throws {
            var one = SystemCase(name: name, mode: mode, code: code, state: SystemMachine.state(mode))
            change(&one.state)
            try run.compare(one)
        }
        func write(_ index: UInt64, _ value: UInt64) throws {
            try compare("WRMSR", [0x0F, 0x30], .long64) {
                $0.general.rcx = index
                $0.general.rax = value & 0xFFFF_FFFF
                $0.general.rdx = value >> 32
            }
        }
        // #UD comes before the look at SYSENTER_CS on AMD processors.
        try compare("SYSENTER", [0x0F, 0x34], .compatibility32) { $0.msrs[0] = 0 }
        // All of FMASK is kept.
        try write(0xC000_0084, 0x1234_5678_0004_0700)
        // SYSENTER_ESP and SYSENTER_EIP are made canonical.
        try write(0x175, 0xE717_1860_7B46_E903)
        try write(0x176, 0x8000_0000_0000)
        #expect(run.disagreements.isEmpty, "\(run.disagreements.joined(separator: "\n"))")
        #expect(run.counts["SYSENTER"]?.compared == 1 && run.counts["WRMSR"]?.compared == 3)
        // Stacks of the LDT, of the same level and of an outer one: a KVM that emulates kernel code refuses them.
        for (cs, ss) in [(0x08, 0x04), (0x73, 0x1F)] as [(UInt64, UInt64)] {
            var one = SystemCase(name: "IRET", mode: .long64, code: [0x48, 0xCF], state: SystemMachine.state(.long64))
            let frame = [SystemLayout.target, cs, 2, SystemLayout.stack + 0x40, ss]
            one.memory = [(one.state.general.rsp, frame.flatMap { word in withUnsafeBytes(of: word.littleEndian) { [UInt8]($0) } })]
            try run.compare(one)
        }
        #expect(run.disagreements.isEmpty, "\(run.disagreements.joined(separator: "\n"))")
        let refused = run.peculiarities.first { $0.key.hasPrefix("IRET to a stack of the LDT") }?.value ?? 0
        #expect(run.counts["IRET"].map { $0.compared + $0.failed } == 2 - refused)
    }
}

extension SystemMachine.Mode {
    /// How many of an instruction's cases must have been compared.
    ///
    /// Measured on a KVM that emulates kernel code with 20,000 cases: none of those that it lacks or does its own way
    /// throughout, 49 % of SYSRET, 59 % and more of far transfers, above 80 % of all others.
    fileprivate func floor(_ name: String, of cases: Int, emulated: Bool) -> Int {
        guard emulated else { return cases * 9 / 10 }
        var lacking: Set = ["LAR", "LSL", "VERR", "VERW", "INT n", "INT3", "CLAC, STAC", "XGETBV", "RDFSBASE and kin", "SYSEXIT"]
        lacking.formUnion(self == .long64 ? ["SYSENTER"] : ["SWAPGS", "SYSRET"])
        return lacking.contains(name) ? 0 : cases / 3
    }
}
