import DifferentialGuest
import VMCore

/// The same cases on the processor, in a KVM guest's user mode, and in the soft engine.
struct DifferentialRun {
    struct Disagreement: CustomStringConvertible {
        var one: DifferentialCase
        var differences: [String]
        var description: String { "\(one) — processor and soft engine: " + differences.joined(separator: ", ") }
    }

    let processor: DifferentialMachine
    let soft: DifferentialMachine
    let hasAVX: Bool

    init() throws {
        let system = try KVMSystem()
        let capabilities = try SelfTests(system: system).capabilities()
        let supported = try system.supportedFeatures()
        let wide = try? CPUModel(named: "x86-64-v3", timestamps: .hide, supported: supported)
        hasAVX = wide != nil
        let model = try wide ?? CPUModel(named: "auto", timestamps: .hide, supported: supported)
        processor = DifferentialMachine(
            try KVMEngine(system: system, memory: try DifferentialMachine.memory(), model: model, capabilities: capabilities),
            hasAVX: hasAVX)
        soft = DifferentialMachine(try SoftEngine(memory: try DifferentialMachine.memory(), model: model), hasAVX: hasAVX)
    }

    /// Runs cases on both; the disagreements.
    func compare(_ cases: [DifferentialCase], _ mode: DifferentialMachine.Mode) throws -> [Disagreement] {
        var found: [Disagreement] = []
        for start in stride(from: 0, to: cases.count, by: DifferentialMachine.batch) {
            let part = Array(cases[start..<min(start + DifferentialMachine.batch, cases.count)])
            let a = try processor.run(part, mode), b = try soft.run(part, mode)
            for (i, one) in part.enumerated() {
                let differences = DifferentialComparison.differences(one, a[i], b[i])
                if !differences.isEmpty { found.append(Disagreement(one: one, differences: differences)) }
            }
        }
        return found
    }

    /// Makes `count` cases from a seed.
    static func cases(_ count: Int, from first: Int = 0, seed: UInt64, _ catalogue: DifferentialCatalogue) -> [DifferentialCase] {
        var generator = DifferentialGenerator(catalogue, seed: seed)
        return (first..<(first + count)).compactMap { generator.make($0) }
    }
}
